"""The sections of labels and class probabilities: confusion matrices, ROC curves and calibration."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.evaluation.results import EvaluationResult
from toolkit.reporting.blocks import Block, Matrices, Matrix, Plot, Plots, Section, Table, Text
from toolkit.reporting.evaluated_rows import EvaluatedRows
from toolkit.reporting.figures import NOTHING, interval, value
from toolkit.reporting.finished_run import FinishedRun
from toolkit.reporting.plots import SERIES, Series, square
from toolkit.scoring.statistics import Estimate, ProbabilityMetrics, ScoredAnswer, proportion
from toolkit.scoring.statistics.confusion_matrix import confusion_table

MAX_LABELS = 40
"""Labels of a confusion matrix that a page can show."""

RESAMPLES = 1000
"""Bootstrap samples for the interval of a bin."""

Floats = NDArray[np.float64]


def confusion_section(run: FinishedRun) -> Section | None:
    """Return the confusion matrices of the first and the last evaluation. None: the task has no labels."""
    found = {label: one.summary.confusion for label, one in run.evaluations.items() if one.summary.confusion.labels}
    if not found:
        return None
    ends = list(dict.fromkeys((next(iter(found)), list(found)[-1])))
    matrices = []
    for label in ends:
        columns, counts = confusion_table(found[label])
        title = f"{label} (n {int(counts.sum()):,})"
        rows = tuple(tuple(map(int, row)) for row in counts)
        matrices.append(Matrix(title, found[label].labels, columns, rows))
    about = (
        "Rows are true labels, columns are answers in the same order. Column ? has unreadable completions, column * "
        "has other labels. Shading is the fraction of the row."
    )
    if len(matrices[-1].labels) > MAX_LABELS:
        text = f"{len(matrices[-1].labels):,} labels are too many to show. The counts are in results.json."
        return Section("confusion", "Confusion matrices", (Text(text),))
    return Section("confusion", "Confusion matrices", (Text(about), Matrices(tuple(matrices))))


def probabilities_section(run: FinishedRun, rows: EvaluatedRows | None) -> Section | None:
    """Return ROC curves and calibration of the last evaluation with class probabilities. None: there is none."""
    found = [(label, one) for label, one in run.evaluations.items() if one.probabilities is not None]
    if not found:
        return None
    label, last = found[-1]
    blocks: list[Block] = [Text(f"{label}, split {last.split}. Each class against the rest."), _metrics_table(found)]
    metrics = last.probabilities.metrics if last.probabilities else None
    if metrics is not None:
        blocks.append(_classes_table(metrics))
        scored = list(rows.scored(label).values()) if rows is not None and rows.samples else []
        if scored:
            blocks.append(Plots((*_roc_plots(scored, metrics), *_calibration_plots(scored, metrics))))
        else:
            blocks.append(Text("The curves need the rows, and the data cannot be read.", "warning"))
    return Section("probabilities", "ROC and calibration", tuple(blocks))


def roc_curve(scores_N: Floats, positive_N: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return the false and the true positive rates at each distinct score, from the highest score down.

    >>> roc_curve(np.array([0.9, 0.4, 0.6]), np.array([True, False, True]))
    (array([0., 0., 0., 1.]), array([0. , 0.5, 1. , 1. ]))
    """
    order = np.argsort(-scores_N, kind="stable")
    ends = np.r_[np.flatnonzero(np.diff(scores_N[order])), len(order) - 1]
    hits, misses = np.cumsum(positive_N[order])[ends], np.cumsum(~positive_N[order])[ends]
    return np.r_[0.0, misses / misses[-1]], np.r_[0.0, hits / hits[-1]]


def reliability(
    scores_N: Floats, right_N: NDArray[np.bool_], groups: Sequence[str], bins: int
) -> list[tuple[float, Estimate]]:
    """Return the mean probability and the frequency of being right for each bin of equal width that has answers."""
    of_N = np.minimum((scores_N * bins).astype(int), bins - 1)
    found = []
    for number_of_bin in range(bins):
        here = of_N == number_of_bin
        if here.any():
            inside = [group for group, one in zip(groups, here, strict=True) if one]
            estimate = proportion(right_N[here].astype(float).tolist(), inside, RESAMPLES, 0)
            found.append((float(scores_N[here].mean()), estimate))
    return found


def _metrics_table(found: Sequence[tuple[str, EvaluationResult]]) -> Table:
    rows = []
    for label, one in found:
        metrics = one.probabilities.metrics if one.probabilities else None
        if metrics is not None:
            figures = {
                "macro AUROC": metrics.auroc,
                "macro average precision": metrics.average_precision,
                "Brier score": metrics.brier,
                f"calibration error, {metrics.bins} bins": metrics.calibration_error,
                "accuracy of the most probable class": metrics.top_accuracy,
            }
            rows += [
                (label, name, _fraction(figure), _range(figure), f"{figure.n:,}")
                for name, figure in figures.items()
                if figure is not None
            ]
    return Table.of(("evaluation", "metric", "value", "95 % interval", "n"), rows, "Class probabilities", 2)


def _classes_table(metrics: ProbabilityMetrics) -> Table:
    rows = []
    for name, one in metrics.classes.items():
        n = (f"{one.positives:,}", f"{one.negatives:,}")
        rows.append((name, *n, _fraction(one.auroc), _range(one.auroc), _fraction(one.average_precision)))
    head = ("class", "positives", "negatives", "AUROC", "95 % interval", "average precision")
    return Table.of(head, rows, "Classes")


def _fraction(found: Estimate) -> str:
    return NOTHING if found.value is None else f"{found.value:.3f}"


def _range(found: Estimate) -> str:
    return NOTHING if found.low is None or found.high is None else f"{found.low:.3f} to {found.high:.3f}"


def _roc_plots(scored: Sequence[ScoredAnswer], metrics: ProbabilityMetrics) -> Iterator[Plot]:
    curves = [
        (name, roc_curve(scores, positive))
        for name, (scores, positive, _) in _by_class(scored, metrics).items()
        if positive.any() and not positive.all()
    ]
    for start in range(0, len(curves), SERIES):
        part = curves[start : start + SERIES]
        series = [Series(name, list(false), list(true)) for name, (false, true) in part]
        rows = [
            (name, _fraction(one.auroc), _range(one.auroc), f"{one.auroc.n:,}")
            for name, one in metrics.classes.items()
            if name in dict(part)
        ]
        table = Table.of(("class", "AUROC", "95 % interval", "n"), rows)
        title = "ROC curves" + (f", classes {start + 1} to {start + len(part)}" if len(curves) > SERIES else "")
        yield Plot(title, square(title, series, ("false positive rate", "true positive rate")), table)


def _calibration_plots(scored: Sequence[ScoredAnswer], metrics: ProbabilityMetrics) -> Iterator[Plot]:
    """Yield one plot of the most probable class, or of each class if an image can have several labels."""
    if metrics.top_accuracy is not None:
        tops = [(one, *_top(one.probabilities)) for one in scored if one.probabilities]
        scores = np.array([probability for _, _, probability in tops])
        right = np.array([row.truth.get(name) is True for row, name, _ in tops])
        yield _calibration("most probable class", scores, right, [row.group for row, _, _ in tops], metrics.bins)
        return
    for name, (scores, positive, groups) in list(_by_class(scored, metrics).items())[:SERIES]:
        if len(scores):
            yield _calibration(name, scores, positive, groups, metrics.bins)


def _top(probabilities: Mapping[str, float]) -> tuple[str, float]:
    """Return the most probable class and its probability. The first of equal ones, as ``probability_metrics``."""
    return max(probabilities.items(), key=lambda pair: pair[1])


def _calibration(name: str, scores: Floats, right: NDArray[np.bool_], groups: Sequence[str], bins: int) -> Plot:
    found = reliability(scores, right, groups, bins)
    rows = [(f"{mean:.3f}", value(one), interval(one), f"{one.n:,}") for mean, one in found]
    table = Table.of(("mean probability", "right", "95 % interval", "n"), rows)
    title = f"calibration: {name} (n {len(scores):,})"
    return Plot(title, square(title, (), ("mean probability", "fraction that is right"), found), table)


def _by_class(
    scored: Sequence[ScoredAnswer], metrics: ProbabilityMetrics
) -> Mapping[str, tuple[Floats, NDArray[np.bool_], list[str]]]:
    """Return class -> probabilities, truth and groups of the answers whose truth is known."""
    found = {}
    for name in metrics.classes:
        rows = [one for one in scored if one.probabilities and name in one.truth]
        scores = np.array([(one.probabilities or {})[name] for one in rows])
        found[name] = scores, np.array([one.truth[name] for one in rows], dtype=bool), [one.group for one in rows]
    return found
