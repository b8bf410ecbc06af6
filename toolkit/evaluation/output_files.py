"""Write predictions.csv, metrics.json and details.jsonl of an evaluation."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.data.episodes import Carried
from toolkit.data.sample import Answer, Sample
from toolkit.evaluation.prompts import EvaluationSet
from toolkit.evaluation.results import EvaluationResult
from toolkit.runfolder import write_json, write_text

TABLE, FIGURES, DETAILS = "predictions.csv", "metrics.json", "details.jsonl"

Answers = Mapping[str, Mapping[str, tuple[Sample, Answer]]]
"""Mode -> sample id -> the sample with the agent memory of its prompt, and its answer."""


def write_outputs(
    folder: Path,
    questions: EvaluationSet,
    answers: Mapping[str, Sequence[tuple[Sample, Answer]]],
    result: EvaluationResult,
) -> None:
    """Write the three files, each under a temporary name first. Samples are in the order of their episodes."""
    if questions.carried is None:
        return
    found: Answers = {mode: {sample.id: (sample, answer) for sample, answer in of} for mode, of in answers.items()}
    positions = questions.positions
    first = {stand.episode: number for number, stand in reversed(list(enumerate(positions.values())))}
    samples = sorted(
        questions.samples, key=lambda sample: (first[positions[sample.id].episode], positions[sample.id].position)
    )
    root = questions.samples.source.image_root
    rows = [_table_row(questions, questions.carried, sample, found, root) for sample in samples]
    write_text(folder / TABLE, _csv(rows))
    write_text(folder / DETAILS, "".join(_details(questions, questions.carried, samples, found)))
    # The counts of cached images differ after an interruption.
    write_json(folder / FIGURES, {name: value for name, value in asdict(result).items() if name != "images"})


def _table_row(
    questions: EvaluationSet, carried: Carried, sample: Sample, answers: Answers, root: Path
) -> dict[str, Any]:
    """Return one row: the position of the step, its reference, and the answer of each mode.

    ``right`` is 1 or 0. ``problem`` is why a completion could not be parsed or is missing. Cells of skipped prompts are
    empty.
    """
    row = {name: _inside(value, root) for name, value in carried.place_columns(sample).items()}
    row |= {f"reference_{name}": _cell(value) for name, value in carried.value_columns(sample.reference).items()}
    for mode, name in questions.names.items():
        suffix = name.replace(" ", "_")
        asked, answer = answers[mode].get(sample.id, (sample, None))
        values = carried.value_columns(answer.values if answer else {})
        row |= {f"{column}_{suffix}": _cell(value) for column, value in values.items()}
        row[f"right_{suffix}"] = "" if answer is None else int(_score(questions, asked, answer) == 1)
        row[f"problem_{suffix}"] = "after a missing step" if answer is None else answer.problem or ""
    return row


def _score(questions: EvaluationSet, sample: Sample, answer: Answer) -> float | None:
    return questions.task.scores(sample, answer)[questions.task.primary]


def _details(questions: EvaluationSet, carried: Carried, samples: Sequence[Sample], answers: Answers) -> Iterator[str]:
    """Yield one line per step and mode: agent memory before and after, completion, parsed answer and scores."""
    for sample in samples:
        for mode in questions.modes:
            if sample.id not in answers[mode]:
                continue
            asked, answer = answers[mode][sample.id]
            held, stand = carried.held(asked), carried.position(asked)
            line = {
                "id": asked.id,
                "chain": stand.episode,
                "place": stand.position,
                "length": stand.length,
                "asked": mode,
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
    """Return a cell: a list as JSON, None as an empty cell."""
    if value is None:
        return ""
    return json.dumps([round(number, 2) for number in value]) if isinstance(value, list | tuple) else value


def _inside(value: Any, root: Path) -> Any:
    """Return a path below the image root relative to it."""
    return value.removeprefix(f"{root}/") if isinstance(value, str) else value
