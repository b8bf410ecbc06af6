"""The files of an evaluation for people and other programs: predictions.csv, metrics.json, details.jsonl."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.data.agent_memory import Carried
from toolkit.data.sample import Answer, Sample
from toolkit.evaluation.context import EvaluationRecord
from toolkit.evaluation.prompts import Questions
from toolkit.runfolder import write_json, write_text

TABLE, FIGURES, DETAILS = "predictions.csv", "metrics.json", "details.jsonl"

Answers = Mapping[str, Mapping[str, tuple[Sample, Answer]]]
"""Way -> sample id -> the question as it was asked, and its answer."""


def write_outputs(
    folder: Path,
    questions: Questions,
    answers: Mapping[str, Sequence[tuple[Sample, Answer]]],
    record: EvaluationRecord,
) -> None:
    """Write the three files, each under a temporary name first. Samples stand in the order of their chains."""
    if questions.carried is None:
        return
    found: Answers = {way: {sample.id: (sample, answer) for sample, answer in of} for way, of in answers.items()}
    stands = questions.stands
    first = {stand.chain: number for number, stand in reversed(list(enumerate(stands.values())))}
    samples = sorted(questions.samples, key=lambda sample: (first[stands[sample.id].chain], stands[sample.id].place))
    root = questions.samples.source.image_root
    rows = [_table_row(questions, questions.carried, sample, found, root) for sample in samples]
    write_text(folder / TABLE, _csv(rows))
    write_text(folder / DETAILS, "".join(_details(questions, questions.carried, samples, found)))
    # How often a picture came from a cache is no figure, and differs after an interruption.
    write_json(folder / FIGURES, {name: value for name, value in record.items() if name != "pictures"})


def _table_row(questions: Questions, carried: Carried, sample: Sample, answers: Answers, root: Path) -> dict[str, Any]:
    """One line: where the step stands, the reference, and what was answered in each way; empty where it was not asked.

    ``right`` is 1 or 0; ``problem`` says why an answer could not be read, or was never given.
    """
    row = {name: _inside(value, root) for name, value in carried.place_columns(sample).items()}
    row |= {f"reference_{name}": _cell(value) for name, value in carried.value_columns(sample.reference).items()}
    for way, name in questions.names.items():
        suffix = name.replace(" ", "_")
        asked, answer = answers[way].get(sample.id, (sample, None))
        values = carried.value_columns(answer.values if answer else {})
        row |= {f"{column}_{suffix}": _cell(value) for column, value in values.items()}
        row[f"right_{suffix}"] = "" if answer is None else int(_score(questions, asked, answer) == 1)
        row[f"problem_{suffix}"] = "stands behind a missing step" if answer is None else answer.problem or ""
    return row


def _score(questions: Questions, sample: Sample, answer: Answer) -> float | None:
    return questions.task.scores(sample, answer)[questions.task.primary]


def _details(questions: Questions, carried: Carried, samples: Sequence[Sample], answers: Answers) -> Iterator[str]:
    """A line a step and way: the memory in the prompt, the completion, what was read, its scores, the memory after."""
    for sample in samples:
        for way in questions.ways:
            if sample.id not in answers[way]:
                continue
            asked, answer = answers[way][sample.id]
            held, stand = carried.held(asked), carried.stand(asked)
            line = {
                "id": asked.id,
                "chain": stand.chain,
                "place": stand.place,
                "length": stand.length,
                "asked": way,
                "question": asked.fields.get("question"),
                "memory": carried.plain(held),
                "completion": answer.text,
                "answer": dict(answer.values),
                "problem": answer.problem,
                "truncated": answer.truncated,
                "scores": dict(questions.task.scores(asked, answer)),
                "memory_after": carried.plain(carried.advance(held, answer)),
                "reference": dict(asked.reference),
            }
            yield json.dumps(line, ensure_ascii=False, default=str) + "\n"


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Lists as JSON, nothing as an empty cell."""
    if value is None:
        return ""
    return json.dumps([round(number, 2) for number in value]) if isinstance(value, list | tuple) else value


def _inside(value: Any, root: Path) -> Any:
    """A path below the image root as rows name it."""
    return value.removeprefix(f"{root}/") if isinstance(value, str) else value
