"""What experiment trackers receive of an evaluation: the table of results, and examples if the recipe allows them."""

from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.data.sample import Answer, Sample
from toolkit.data.shapes import Shape
from toolkit.data.task import Task
from toolkit.errors import ToolkitError
from toolkit.evaluation.results import BASELINE, EvaluationResult
from toolkit.evaluation.stage_context import Context
from toolkit.evaluation.trackers import Table, Trackers
from toolkit.identifiers import hidden_id
from toolkit.runfolder import read_lines
from toolkit.scoring.statistics import Estimate

STAGE = "evaluation"
"""Prefix of all names in a tracker."""

RESULT_COLUMNS = (
    "evaluation",
    "score",
    "value",
    "low",
    "high",
    "n",
    "groups",
    "compared with",
    "difference",
    "difference low",
    "difference high",
    "p",
)
"""Columns of the table of results: a score with its interval, and a paired difference with its own."""

EXAMPLE_COLUMNS = ("id", "image", "question", "completion", "reference", "score", "problem")

LINE_KEYS = ("id", "completion", "truncated", "problem")


def track_evaluation(trackers: Trackers, context: Context, name: str, found: Mapping[str, EvaluationResult]) -> None:
    """Send the results of all finished evaluations, and examples of evaluation ``name``.

    Args:
        trackers: the open trackers.
        context: the run.
        name: the evaluation that has just finished.
        found: name -> result of each finished evaluation.
    """
    if not trackers:
        return
    step = len(found)
    trackers.figures(STAGE, step, _figures(found[name]))
    trackers.table(f"{STAGE}/results", step, results_table(found))
    if count := context.recipe.run.tracker_examples:
        trackers.table(f"{STAGE}/examples/{name}", step, _examples(context, found[name], count))


def results_table(found: Mapping[str, EvaluationResult]) -> Table:
    """Return one row per evaluation, score and comparison. A score without a comparison has one row."""
    return Table(RESULT_COLUMNS, tuple(row for name, one in found.items() for row in _rows(name, one)))


def _figures(result: EvaluationResult) -> dict[str, float]:
    """Return the curves of an evaluation: each score with the ends of its interval."""
    figures: dict[str, float] = {}
    for score, estimate in _estimates(result):
        parts = {score: estimate.value, f"{score}/low": estimate.low, f"{score}/high": estimate.high}
        figures |= {key: value for key, value in parts.items() if value is not None}
    return figures


def _estimates(result: EvaluationResult) -> Iterator[tuple[str, Estimate]]:
    yield from ((score, one.value) for score, one in result.scores.items())
    yield from ((name, one.value) for name, one in result.set_metrics.items())
    if result.probabilities is not None:
        metrics = result.probabilities.metrics
        yield "AUROC", metrics.auroc
        yield "average precision", metrics.average_precision
        yield "Brier score", metrics.brier
        yield "calibration error", metrics.calibration_error


def _rows(name: str, result: EvaluationResult) -> Iterator[tuple[Any, ...]]:
    compared = dict(_differences(result))
    for score, estimate in _estimates(result):
        value = (name, score, estimate.value, estimate.low, estimate.high, estimate.n, estimate.groups)
        for other, difference, p in compared.get(score, ()) or [("", None, None)]:
            ends = (None,) * 3 if difference is None else (difference.value, difference.low, difference.high)
            yield (*value, other, *ends, p)


def _differences(result: EvaluationResult) -> Iterator[tuple[str, list[tuple[str, Estimate | None, float | None]]]]:
    for score, one in result.scores.items():
        yield score, [(_other(key), found.difference, found.p_value) for key, found in one.differences.items()]
    for name, metric in result.set_metrics.items():
        yield name, [(_other(key), found, None) for key, found in metric.differences.items()]


def _other(name: str) -> str:
    return "majority baseline" if name == BASELINE else name


def _examples(context: Context, result: EvaluationResult, count: int) -> Table:
    """Return evenly spaced rows of an evaluation, which are the same for every evaluation of the split."""
    from toolkit.evaluation.answers import read_reply, reply_of
    from toolkit.tasks import TASKS

    task = TASKS[context.recipe.dataset.task]
    lines = read_lines(context.run.path / result.predictions, LINE_KEYS)
    count = min(count, len(lines))
    chosen = {line["id"]: line for line in (lines[number * len(lines) // count] for number in range(count))}
    samples = [sample for sample in getattr(context.data, result.split) if sample.id in chosen]
    rows = []
    for sample in samples:
        answer = read_reply(task, sample, reply_of(chosen[sample.id]))
        score = task.scores(sample, answer)[task.primary]
        texts = (task.question(sample), answer.text, task.target(sample))
        rows.append((hidden_id(sample.id), _image(context, task, sample, answer), *texts, score, answer.problem))
    return Table(EXAMPLE_COLUMNS, tuple(rows))


def _image(context: Context, task: Task, sample: Sample, answer: Answer) -> Any:
    """Return the first image with the shapes of the completion and the reference. None: it cannot be read."""
    from toolkit.evaluation.drawing import draw_shapes

    if not sample.images:
        return None
    try:
        loaded = context.images.fetch(sample.images[0])
    except ToolkitError:  # a grey square replaced it in the evaluation
        return None
    return draw_shapes(loaded, _shapes(task, sample, answer), _shapes(task, sample, None))


def _shapes(task: Task, sample: Sample, answer: Answer | None) -> tuple[Shape, ...]:
    """Return what a task draws. Nothing if the file of a mask cannot be read, because the rest is still of use."""
    try:
        return task.shapes(sample, answer)
    except ToolkitError:
        return ()
