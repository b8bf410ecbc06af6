"""Metrics of class probabilities, each class against the rest: AUROC, average precision, calibration, thresholds.

A class without a positive or without a negative answer has no AUROC, no average precision and no operating point. It is
left out of the means over classes. All metrics use the same bootstrap samples of whole groups.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.scoring.statistics.bootstrap import Draws, count_groups, drawn_weights
from toolkit.scoring.statistics.intervals import Estimate, bootstrapped, proportion, wilson
from toolkit.scoring.statistics.summary import ScoredAnswer

BINS = 15
"""Bins of equal width of the calibration error (Guo et al. 2017, arXiv 1706.04599)."""

LEVELS = (0.90, 0.95)
"""Levels of sensitivity and of specificity at which the other one is reported."""

AUROC, AVERAGE_PRECISION = "macro AUROC", "macro average precision"
"""Names of the means over classes in ``compare_probabilities``."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Sensitivity and specificity of one class at a threshold. A class is predicted if its probability reaches it.

    Attributes:
        fixed: the rate that the threshold was chosen for.
        level: the least value of this rate on the rows that the threshold was chosen on.
        threshold: the threshold with the best other rate. None: no threshold has this level.
        sensitivity: fraction of the positive answers that reach the threshold.
        specificity: fraction of the negative answers below it.
    """

    fixed: Literal["sensitivity", "specificity"]
    level: float
    threshold: float | None
    sensitivity: Estimate
    specificity: Estimate


@dataclass(frozen=True, slots=True)
class OneClass:
    """The probabilities of one class against the rest.

    Attributes:
        positives: answers with this class.
        negatives: answers without it. An answer whose reference leaves the class open is neither.
        auroc: area under the ROC curve. A constant probability has 0.5.
        average_precision: area under the precision-recall curve, as a sum over its steps.
        prevalence: fraction of positive answers, which is the average precision of a constant probability.
        brier: mean squared difference of probability and 0 or 1.
        calibration_error: mean distance of probability and frequency over ``BINS`` bins.
        operating_points: see ``OperatingPoint``.
    """

    positives: int
    negatives: int
    auroc: Estimate
    average_precision: Estimate
    prevalence: float | None
    brier: Estimate
    calibration_error: Estimate
    operating_points: tuple[OperatingPoint, ...]


@dataclass(frozen=True, slots=True)
class ProbabilityMetrics:
    """Metrics of the class probabilities of ``n`` answers.

    Attributes:
        n: answers with probabilities.
        groups: their patients, lesions or images.
        auroc: mean over the classes that have one.
        average_precision: likewise.
        prevalence: mean prevalence of these classes, which is the average precision of constant probabilities.
        brier: mean over all classes.
        calibration_error: of the most probable class if an image has one label, otherwise the mean over all classes.
        bins: number of bins of equal width of the calibration errors.
        thresholds_from: the split that the thresholds were chosen on.
        classes: class -> its metrics.
        top_accuracy: fraction of answers whose most probable class is right. None: images can have several labels, or
            the file is of an earlier version.
    """

    n: int
    groups: int
    auroc: Estimate
    average_precision: Estimate
    prevalence: float | None
    brier: Estimate
    calibration_error: Estimate
    bins: int
    thresholds_from: str
    classes: Mapping[str, OneClass]
    top_accuracy: Estimate | None = None


def probability_metrics(
    rows: Sequence[ScoredAnswer],
    one_label: bool,
    draws: Draws,
    split: str,
    chosen_on: tuple[str, Sequence[ScoredAnswer]] | None = None,
) -> ProbabilityMetrics | None:
    """Return the metrics of the rows with probabilities, or None if there are none.

    Args:
        rows: the scored answers of the evaluated split.
        one_label: whether an image has exactly one label.
        draws: resamples and seed of the bootstrap.
        split: the evaluated split.
        chosen_on: another split and its rows, on which thresholds are chosen. None: the evaluated split.
    """
    table = _Table.of(rows)
    if table is None:
        return None
    source, others = chosen_on or (split, rows)
    figures = _figures(table, draws)
    classes = {name: _one_class(table, figures, name) for name in table.names}
    points = {name: _operating_points(table, _Table.of(others), name, draws) for name in table.names}
    defined = [one.prevalence for one in classes.values() if one.auroc.value is not None and one.prevalence is not None]
    top = _top_error(table, draws) if one_label else _mean_of(table, figures, "calibration_error")
    return ProbabilityMetrics(
        n=len(table.groups),
        groups=count_groups(table.groups),
        auroc=_mean_of(table, figures, "auroc"),
        average_precision=_mean_of(table, figures, "average_precision"),
        prevalence=sum(defined) / len(defined) if defined else None,
        brier=_mean_of(table, figures, "brier"),
        calibration_error=top,
        bins=BINS,
        thresholds_from=source,
        classes={name: replace(one, operating_points=points[name]) for name, one in classes.items()},
        top_accuracy=_top_accuracy(table, draws) if one_label else None,
    )


def compare_probabilities(
    before: Sequence[ScoredAnswer], after: Sequence[ScoredAnswer], draws: Draws
) -> dict[str, Estimate]:
    """Return the paired differences of the means over classes, on the answers with probabilities in both."""
    old = {row.id: row for row in before if row.probabilities is not None}
    new = [row for row in after if row.probabilities is not None and row.id in old]
    tables = _Table.of([old[row.id] for row in new]), _Table.of(new)
    if tables[0] is None or tables[1] is None or tables[0].names != tables[1].names:
        return {}
    first, second = (_figures(table, draws) for table in tables if table is not None)
    return {
        label: _difference(tables[1], first[metric], second[metric])
        for label, metric in ((AUROC, "auroc"), (AVERAGE_PRECISION, "average_precision"))
    }


def threshold_at(
    scores: Floats, positive: Mask, fixed: Literal["sensitivity", "specificity"], level: float
) -> float | None:
    """Return the threshold with at least this sensitivity or specificity, and the best other rate. None: there is none.

    >>> scores, positive = np.array([0.1, 0.4, 0.6, 0.9]), np.array([False, True, False, True])
    >>> threshold_at(scores, positive, "sensitivity", 0.9), threshold_at(scores, positive, "specificity", 0.9)
    (0.4, 0.9)
    """
    if positive.all() or not positive.any():
        return None
    candidates = np.unique(scores)
    if fixed == "sensitivity":
        reached = np.searchsorted(np.sort(scores[positive]), candidates, side="left")
        allowed = candidates[1 - reached / positive.sum() >= level]
        return float(allowed.max()) if len(allowed) else None
    below = np.searchsorted(np.sort(scores[~positive]), candidates, side="left")
    allowed = candidates[below / (~positive).sum() >= level]
    return float(allowed.min()) if len(allowed) else None


@dataclass(frozen=True, slots=True)
class _Table:
    """Probabilities and truth of answers, shape (answers, classes). Truth is 1, 0, or NaN if it is open."""

    names: tuple[str, ...]
    groups: tuple[str, ...]
    scores_NK: Floats
    truth_NK: Floats

    @classmethod
    def of(cls, rows: Sequence[ScoredAnswer]) -> "_Table | None":
        found = [(row, row.probabilities) for row in rows if row.probabilities is not None]
        if not found:
            return None
        names = tuple(found[0][1])
        return cls(
            names,
            tuple(row.group for row, _ in found),
            np.array([[probabilities[name] for name in names] for _, probabilities in found]),
            np.array([[row.truth.get(name, math.nan) for name in names] for row, _ in found], dtype=float),
        )

    def known(self, name: str) -> tuple[Floats, Mask, list[str], Mask]:
        """Return scores, truth and groups of the answers whose truth is known, and which answers these are."""
        column = self.names.index(name)
        known = ~np.isnan(self.truth_NK[:, column])
        groups = [group for group, here in zip(self.groups, known, strict=True) if here]
        return self.scores_NK[known, column], self.truth_NK[known, column] == 1, groups, known


@dataclass(frozen=True, slots=True)
class _Figure:
    """A metric of each class: of the answers, shape (classes), and of the resamples, shape (resamples, classes)."""

    value_K: Floats
    drawn_RK: Floats

    @property
    def mean(self) -> float:
        return float(_nanmean(self.value_K[None])[0])

    @property
    def drawn_means(self) -> Floats:
        """Mean over the classes with a value, for each resample."""
        return _nanmean(self.drawn_RK[:, ~np.isnan(self.value_K)])


Metric = Callable[[Floats, Floats, Mask], Floats]
"""(weights_RN, scores_N, positive_N) -> the metric of each resample, shape (R). NaN if it is not defined."""

_WITH_LIMITS = ("auroc", "average_precision")
"""Metrics whose bootstrap has no width at 0 and 1."""


def _figures(table: _Table, draws: Draws) -> dict[str, _Figure]:
    parts: dict[str, list[Floats]] = {name: [] for name in _METRICS}
    known = [table.known(name) for name in table.names]
    weights = [np.ones((1, len(table.groups))), *drawn_weights(table.groups, draws.resamples, draws.seed)]
    for weights_RN in weights:
        for metric, compute in _METRICS.items():
            columns = [compute(weights_RN[:, of], scores, positive) for scores, positive, _, of in known]
            parts[metric].append(np.column_stack(columns))
    stacked = {metric: np.concatenate(of) for metric, of in parts.items()}
    return {metric: _Figure(values[0], values[1:]) for metric, values in stacked.items()}


def _by_score(weights_RN: Floats, scores_N: Floats, positive_N: Mask) -> tuple[Floats, Floats]:
    """Return the weight of positive and of negative answers at each distinct score, in rising order."""
    order = np.argsort(scores_N, kind="stable")
    ordered = scores_N[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    positive = np.add.reduceat(weights_RN[:, order] * positive_N[order], starts, axis=1)
    return positive, np.add.reduceat(weights_RN[:, order] * ~positive_N[order], starts, axis=1)


def _auroc(weights_RN: Floats, scores_N: Floats, positive_N: Mask) -> Floats:
    if not len(scores_N):
        return np.full(len(weights_RN), math.nan)
    positive, negative = _by_score(weights_RN, scores_N, positive_N)
    below = negative.cumsum(axis=1) - negative / 2  # an equal score counts as one half
    return _ratio((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def _average_precision(weights_RN: Floats, scores_N: Floats, positive_N: Mask) -> Floats:
    if not len(scores_N) or positive_N.all():
        return np.full(len(weights_RN), math.nan)
    positive, negative = (part[:, ::-1] for part in _by_score(weights_RN, scores_N, positive_N))
    reached = positive.cumsum(axis=1)
    total = reached + negative.cumsum(axis=1)
    precision = np.divide(reached, total, out=np.zeros_like(total), where=total > 0)
    return _ratio((positive * precision).sum(axis=1), positive.sum(axis=1))


def _brier(weights_RN: Floats, scores_N: Floats, positive_N: Mask) -> Floats:
    return _ratio(weights_RN @ (scores_N - positive_N) ** 2, weights_RN.sum(axis=1))


def _calibration_error(weights_RN: Floats, scores_N: Floats, positive_N: Mask) -> Floats:
    """Return the expected calibration error: |frequency - mean probability| of each bin, weighted by its answers."""
    bins_N = np.minimum((scores_N * BINS).astype(int), BINS - 1)
    gaps_NB = (positive_N - scores_N)[:, None] * (bins_N[:, None] == np.arange(BINS))
    return _ratio(np.abs(weights_RN @ gaps_NB).sum(axis=1), weights_RN.sum(axis=1))


_METRICS: Mapping[str, Metric] = {
    "auroc": _auroc,
    "average_precision": _average_precision,
    "brier": _brier,
    "calibration_error": _calibration_error,
}


def _one_class(table: _Table, figures: Mapping[str, _Figure], name: str) -> OneClass:
    column = table.names.index(name)
    _, positive, groups, _ = table.known(name)

    def estimate(metric: str) -> Estimate:
        figure = figures[metric]
        value = float(figure.value_K[column])
        if metric in _WITH_LIMITS and value in (0, 1):
            return _at_limit(value, positive, groups)
        return _interval(value, len(groups), count_groups(groups), figure.drawn_RK[:, column])

    return OneClass(
        positives=int(positive.sum()),
        negatives=int((~positive).sum()),
        auroc=estimate("auroc"),
        average_precision=estimate("average_precision"),
        prevalence=float(positive.mean()) if len(positive) else None,
        brier=estimate("brier"),
        calibration_error=estimate("calibration_error"),
        operating_points=(),
    )


def _operating_points(table: _Table, others: _Table | None, name: str, draws: Draws) -> tuple[OperatingPoint, ...]:
    scores, positive, groups, _ = table.known(name)
    if others is None or name not in others.names:
        return ()
    other_scores, other_positive, _, _ = others.known(name)

    def rate(threshold: float | None, of: Mask, reached: bool) -> Estimate:
        if threshold is None:
            return Estimate(None, int(of.sum()), None, None, "none", 0)
        hits = (scores[of] >= threshold) == reached
        chosen = [group for group, here in zip(groups, of, strict=True) if here]
        return proportion(hits.astype(float).tolist(), chosen, draws.resamples, draws.seed)

    points: list[OperatingPoint] = []
    for fixed in ("specificity", "sensitivity"):
        for level in LEVELS:
            at = threshold_at(other_scores, other_positive, fixed, level)
            points.append(OperatingPoint(fixed, level, at, rate(at, positive, True), rate(at, ~positive, False)))
    return tuple(points)


def _mean_of(table: _Table, figures: Mapping[str, _Figure], metric: str) -> Estimate:
    """Return the mean of a metric over the classes that have it."""
    figure, n, n_groups = figures[metric], len(table.groups), count_groups(table.groups)
    if metric in _WITH_LIMITS and figure.mean in (0, 1):
        named = [name for name, value in zip(table.names, figure.value_K, strict=True) if not math.isnan(value)]
        limits = [_at_limit(figure.mean, positive, groups) for _, positive, groups, _ in map(table.known, named)]
        widest = max(limits, key=lambda one: (one.high or 0) - (one.low or 0))
        return replace(widest, n=n, groups=n_groups)
    return _interval(figure.mean, n, n_groups, figure.drawn_means)


def disagreement(rows: Sequence[ScoredAnswer]) -> tuple[int, int]:
    """Return how many parsed answers name another class than the most probable one, and how many can be compared.

    >>> row = ScoredAnswer("a", "g", {}, ("x", "x"), probabilities={"x": 0.4, "y": 0.6})
    >>> disagreement([row, replace(row, label=("x", "y")), replace(row, label=("x", None))])
    (1, 2)
    """
    found = [(row.label[1], row.probabilities) for row in rows if row.label and row.probabilities]
    both = [(label, probabilities) for label, probabilities in found if label is not None]
    return sum(max(of, key=lambda name: of[name]) != label for label, of in both), len(both)


def _top(table: _Table) -> tuple[Floats, Mask]:
    """Return the probability of the most probable class, and whether it is right, for each answer."""
    top = table.scores_NK.argmax(axis=1)
    rows = np.arange(len(top))
    return table.scores_NK[rows, top], table.truth_NK[rows, top] == 1


def _top_accuracy(table: _Table, draws: Draws) -> Estimate:
    _, right = _top(table)
    return proportion(right.astype(float).tolist(), list(table.groups), draws.resamples, draws.seed)


def _top_error(table: _Table, draws: Draws) -> Estimate:
    """Return the calibration error of the most probable class."""
    scores, right = _top(table)
    weights = [np.ones((1, len(right))), *drawn_weights(table.groups, draws.resamples, draws.seed)]
    value, *drawn = np.concatenate([_calibration_error(weights_RN, scores, right) for weights_RN in weights])
    return _interval(float(value), len(right), count_groups(table.groups), np.array(drawn))


def _at_limit(value: float, positive: Mask, groups: Sequence[str]) -> Estimate:
    """Return the interval of an AUROC or average precision of 0 or 1, where a bootstrap has no width.

    It is Wilson's for the groups of the smaller side, as if each of them were one correct or wrong answer.
    """
    sides = [len({group for group, here in zip(groups, of, strict=True) if here}) for of in (positive, ~positive)]
    bound = wilson(min(sides) if value else 0, min(sides))
    return Estimate(value, len(groups), bound.low, bound.high, "wilson by group", count_groups(groups))


def _difference(table: _Table, before: _Figure, after: _Figure) -> Estimate:
    return _interval(
        after.mean - before.mean,
        len(table.groups),
        count_groups(table.groups),
        after.drawn_means - before.drawn_means,
    )


def _interval(value: float, n: int, n_groups: int, drawn: Floats) -> Estimate:
    if math.isnan(value):
        return Estimate(None, n, None, None, "none", n_groups)
    return bootstrapped(value, n, n_groups, drawn)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.asarray(np.divide(top, bottom, out=np.full(bottom.shape, math.nan), where=bottom > 0))


def _nanmean(values_RK: Floats) -> Floats:
    counts = (~np.isnan(values_RK)).sum(axis=1)
    return _ratio(np.nansum(values_RK, axis=1), counts.astype(float))
