"""Evaluate a model with greedy decoding on a held-out split: scores, intervals, baselines and differences.

A task with agent memory (``Task.agent_memory``) is evaluated in several modes: with the reference's memory, the model's
own, and none. Each mode has its own file of predictions, and all are scored in the same way.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from toolkit.data.episodes import AgentMemoryFunctions
from toolkit.data.sample import Answer, Sample
from toolkit.evaluation.custom_metrics import code_digest
from toolkit.evaluation.evaluation_predictions import (
    PARTIAL,
    Rows,
    answers_file,
    baseline_rows,
    earlier_rows,
    finish_file,
    generate_missing,
    read_mode,
    validation_rows,
)
from toolkit.evaluation.evaluation_set import REFERENCE, VALIDATION, EvaluationSet
from toolkit.evaluation.generate import weights_identity
from toolkit.evaluation.results import EvaluationResult, evaluation_stage
from toolkit.evaluation.scores import Others, make_result, whole_results
from toolkit.evaluation.stage_context import Context
from toolkit.models import Backend
from toolkit.runfolder import csv_text, write_json, write_text

TABLE, FIGURES, DETAILS = "predictions.csv", "metrics.json", "details.jsonl"
Answers = Mapping[str, Mapping[str, tuple[Sample, Answer]]]
"""Mode -> sample id -> the sample with the agent memory of its prompt, and its answer."""


def evaluate(
    context: Context, name: str, weights: Path | None, earlier: Sequence[str], backend: Backend | None = None
) -> EvaluationResult:
    """Evaluate weights on the held-out split. Its files are in ``stages/evaluate-NAME``.

    An interrupted evaluation resumes after the last saved prediction.

    Args:
        context: the run.
        name: the name of the evaluation.
        weights: the weights. None: the base model.
        earlier: earlier evaluations to compare with.
        backend: loads the model. Default: that of the recipe.

    Raises:
        DataError: the split has no rows, or a row is too long.
        MetricError: a custom metric failed.
        RunError: a file of predictions is incomplete or damaged.
        Interrupted: after a signal. Saved predictions are kept.
    """
    evaluation_set = EvaluationSet.of(context)
    folder = context.run.stage_folder(evaluation_stage(name))
    digest = _identity(context, weights)
    modes = (*evaluation_set.modes, *([VALIDATION] if evaluation_set.validation else []))
    partial = {mode: folder / answers_file(mode, digest) for mode in modes}
    generate_missing(context, name, evaluation_set, partial, weights, backend)
    answers = {mode: read_mode(evaluation_set, mode, partial[mode]) for mode in evaluation_set.modes}
    rows: dict[str, Rows] = {
        mode: evaluation_set.score_answers(found, context.recipe) for mode, found in answers.items()
    }
    validation = validation_rows(evaluation_set, partial[VALIDATION]) if VALIDATION in partial else []
    for mode, file in partial.items():
        if file.exists():  # that of the validation split is missing if there are no probabilities
            finish_file(evaluation_set, mode, file, folder / answers_file(mode))
    for other in folder.glob(PARTIAL.format("*")):
        other.unlink()
    before = {other: earlier_rows(context, evaluation_set, other) for other in earlier}
    baselines = baseline_rows(context, evaluation_set)
    result = make_result(context, name, evaluation_set, rows, Others(baselines, before, validation))
    if evaluation_set.custom:
        whole = evaluation_set.custom.values(answers[REFERENCE]).whole
        n, groups = len(rows[REFERENCE]), len({row.group for row in rows[REFERENCE]})
        set_metrics = {**result.set_metrics, **whole_results(whole, baselines.whole, n, groups)}
        code = code_digest(evaluation_set.custom.entries)
        result = replace(result, set_metrics=set_metrics, metrics_code=code)
    if evaluation_set.agent_memory:
        _write_outputs(folder, evaluation_set, evaluation_set.agent_memory, answers, result)
    return result


def _write_outputs(
    folder: Path,
    evaluation_set: EvaluationSet,
    agent_memory: AgentMemoryFunctions,
    answers: Mapping[str, Sequence[tuple[Sample, Answer]]],
    result: EvaluationResult,
) -> None:
    """Write the three files, each under a temporary name first. Samples are in the order of their episodes."""
    found: Answers = {mode: {sample.id: (sample, answer) for sample, answer in of} for mode, of in answers.items()}
    positions = evaluation_set.positions
    first = {position.episode: number for number, position in reversed(list(enumerate(positions.values())))}
    samples = sorted(
        evaluation_set.samples, key=lambda sample: (first[positions[sample.id].episode], positions[sample.id].position)
    )
    root = evaluation_set.samples.origin.image_root
    rows = [_table_row(evaluation_set, agent_memory, sample, found, root) for sample in samples]
    write_text(folder / TABLE, _csv(rows), private=True)
    write_text(folder / DETAILS, "".join(_details(evaluation_set, agent_memory, samples, found)), private=True)
    # The counts of cached images differ after an interruption.
    write_json(folder / FIGURES, {name: value for name, value in asdict(result).items() if name != "images"})


def _identity(context: Context, weights: Path | None) -> str:
    """Return a digest of the weights' files, the rows, the prompt, the image policy and the generation settings."""
    recipe = context.recipe
    section = recipe.evaluation
    how = (recipe.model.name, recipe.model.precision, section.max_completion_tokens, recipe.prompt.model_dump_json())
    samples = (context.data.fingerprint, section.split, section.max_tasks, context.images.policy.key)
    return blake2b(
        repr((weights_identity(weights), how, samples, section.probabilities)).encode(), digest_size=6
    ).hexdigest()


def _table_row(
    evaluation_set: EvaluationSet, agent_memory: AgentMemoryFunctions, sample: Sample, answers: Answers, root: Path
) -> dict[str, Any]:
    """Return one row: the position of the step, its reference, and the answer of each mode.

    ``right`` is 1 or 0. ``problem`` is why a completion could not be parsed or is missing. Cells of skipped prompts are
    empty.
    """
    row = {name: _inside(value, root) for name, value in agent_memory.place_columns(sample).items()}
    row |= {f"reference_{name}": _cell(value) for name, value in agent_memory.value_columns(sample.reference).items()}
    for mode, name in evaluation_set.names.items():
        suffix = name.replace(" ", "_")
        prompted, answer = answers[mode].get(sample.id, (sample, None))
        values = agent_memory.value_columns(answer.values if answer else {})
        row |= {f"{column}_{suffix}": _cell(value) for column, value in values.items()}
        row[f"right_{suffix}"] = "" if answer is None else int(_score(evaluation_set, prompted, answer) == 1)
        row[f"problem_{suffix}"] = "after a missing step" if answer is None else answer.problem or ""
    return row


def _score(evaluation_set: EvaluationSet, sample: Sample, answer: Answer) -> float | None:
    return evaluation_set.task.scores(sample, answer)[evaluation_set.task.primary]


def _details(
    evaluation_set: EvaluationSet, agent_memory: AgentMemoryFunctions, samples: Sequence[Sample], answers: Answers
) -> Iterator[str]:
    """Yield one line per step and mode: agent memory before and after, completion, parsed answer and scores."""
    for sample in samples:
        for mode in evaluation_set.modes:
            if sample.id not in answers[mode]:
                continue
            prompted, answer = answers[mode][sample.id]
            held, position = agent_memory.held(prompted), agent_memory.position(prompted)
            line = {
                "id": prompted.id,
                "episode": position.episode,
                "position": position.position,
                "length": position.length,
                "mode": mode,
                "question": prompted.fields.get("question"),
                "agent_memory": agent_memory.plain(held),
                "completion": answer.text,
                "answer": dict(answer.values),
                "problem": answer.problem,
                "truncated": answer.truncated,
                "scores": dict(evaluation_set.task.scores(prompted, answer)),
                "agent_memory_after": agent_memory.plain(agent_memory.advance(held, answer)),
                "reference": dict(prompted.reference),
            }
            yield json.dumps(line, ensure_ascii=False, default=str) + "\n"


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(rows[0])
    return csv_text([columns, *([row.get(name) for name in columns] for row in rows)])


def _cell(value: Any) -> Any:
    """Return a cell: a list as JSON, None as an empty cell."""
    if value is None:
        return ""
    return json.dumps([round(number, 2) for number in value]) if isinstance(value, list | tuple) else value


def _inside(value: Any, root: Path) -> Any:
    """Return a path below the image root relative to it."""
    return value.removeprefix(f"{root}/") if isinstance(value, str) else value
