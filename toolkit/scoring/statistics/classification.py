"""Classification metrics: balanced accuracy and macro-F1, and each class against the rest.

An unparsed answer is wrong for its true class and a hit of no class. It names no class, so it counts as a correct "not
this class" for every other class. Specificity hides such answers, so ``ClassificationMetrics.unreadable`` counts them.

All metrics are functions of three counts per class (hits, true labels, predictions). The counts are summed per group
once, so each bootstrap sample of groups costs one matrix product instead of a pass over the answers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolkit.scoring.statistics.bootstrap import drawn_sums, sums_by_group
from toolkit.scoring.statistics.intervals import Estimate, bootstrapped, wilson_proportion


@dataclass(frozen=True, slots=True)
class OneVsRest:
    """One class against the rest, which includes unparsed answers.

    The ``n`` of each estimate is its denominator: answers of the class for sensitivity, answers of other classes for
    specificity, predictions of the class for precision, and either of them for F1. Without such answers the value is
    None.
    """

    n: int
    """Answers with this true label."""
    answered: int
    """Answers with this predicted label."""
    sensitivity: Estimate
    """Recall."""
    specificity: Estimate
    precision: Estimate
    """Positive predictive value at the prevalence in these answers."""
    npv: Estimate
    """Negative predictive value."""
    f1: Estimate
    balanced_accuracy: Estimate
    """Mean of sensitivity and specificity. If one has no value, the other."""


@dataclass(frozen=True, slots=True)
class ClassificationMetrics:
    """Metrics of ``n`` answers with labels."""

    n: int
    groups: int
    unreadable: int
    """Answers without a predicted label."""
    foreign: int
    """Answers with a label outside ``classes``. They count as wrong, like unparsed answers."""
    balanced_accuracy: Estimate
    """Mean sensitivity of the classes that occur in the truth (scikit-learn's ``balanced_accuracy_score``)."""
    classes: Mapping[str, OneVsRest]
    """The classes that occur in the truth, in sorted order, and ``positive``."""
    positive: str | None
    """The class of interest, such as melanoma. It is in ``classes`` even if no answer has it."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of shape (samples, classes). The true label of every answer is one of the classes."""

    hits: np.ndarray
    true: np.ndarray
    answered: np.ndarray
    """Predictions of the class. Unparsed answers and labels outside the classes are in no column."""

    def one_vs_rest(self, index: int) -> "Counts":
        """Return counts of two classes: the one at ``index`` and the rest, which includes unparsed answers."""
        hits, true, answered = self.hits[:, index], self.true[:, index], self.answered[:, index]
        n = self.true.sum(axis=1)
        return Counts(
            np.column_stack([hits, n - true - answered + hits]),
            np.column_stack([true, n - true]),
            np.column_stack([answered, n - answered]),
        )


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Counts of ``n`` answers: per group, in total (one row), and per bootstrap sample of whole groups."""

    classes: tuple[str, ...]
    n: int
    by_group: Counts
    whole: Counts
    drawn: Counts

    def one_vs_rest(self, name: str) -> "ClassCounts":
        """Return the counts of ``name`` against the rest, which includes unparsed answers."""
        index = self.classes.index(name)
        by_group, whole, drawn = (counts.one_vs_rest(index) for counts in (self.by_group, self.whole, self.drawn))
        return replace(self, classes=(name, "rest"), by_group=by_group, whole=whole, drawn=drawn)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A metric per class: ``curve`` applied to the ratio of ``part``'s first counts to its second counts.

    ``curve`` is increasing, so it maps an interval of the ratio to an interval of the metric.
    """

    part: Callable[[Counts], tuple[np.ndarray, np.ndarray]]
    curve: Callable[[Any], Any]

    def of(self, counts: Counts) -> np.ndarray:
        """Return the metric with shape (samples, classes). It is NaN if the denominator is 0."""
        successes, total = self.part(counts)
        return np.asarray(self.curve(np.divide(successes, total, out=np.full(total.shape, np.nan), where=total > 0)))


SENSITIVITY = Ratio(lambda counts: (counts.hits, counts.true), lambda fraction: fraction)

PRECISION = Ratio(lambda counts: (counts.hits, counts.answered), lambda fraction: fraction)

F1 = Ratio(
    lambda counts: (counts.hits, counts.true + counts.answered - counts.hits),
    lambda fraction: 2 * fraction / (1 + fraction),
)
"""F1 as a function of the fraction of hits among answers that are, or are predicted as, the class.

Unlike F1, this fraction is a proportion of independent answers (Lam, Gopal and Jiang 2023, arXiv 2309.14621: the
indirect method)."""


def metrics_from_counts(
    counted: ClassCounts, predicted: Sequence[str | None], positive: str | None, confidence: float = 0.95
) -> ClassificationMetrics:
    """Return balanced accuracy, and the one-vs-rest metrics of each class.

    A proportion whose groups have one answer each, or with no or only hits, gets Wilson's interval. All others get a
    bootstrap interval over groups. All metrics use the same bootstrap samples.

    Args:
        counted: The counts.
        predicted: The predictions behind the counts. None: the answer was not parsed.
        positive: The class of interest. See ``ClassificationMetrics``.
        confidence: Confidence level of the intervals.
    """
    unreadable = sum(name is None for name in predicted)
    return ClassificationMetrics(
        n=counted.n,
        groups=len(counted.by_group.true),
        unreadable=unreadable,
        foreign=counted.n - unreadable - int(counted.whole.answered.sum()),
        balanced_accuracy=class_mean(counted, SENSITIVITY, confidence),
        classes={name: _against_rest(counted, name, confidence) for name in counted.classes},
        positive=positive,
    )


def count_classes(
    true: Sequence[str],
    predicted: Sequence[str | None],
    groups: Sequence[str],
    resamples: int,
    seed: int,
    also: Sequence[str] = (),
) -> ClassCounts:
    """Return the counts of all labels in ``true``, in sorted order.

    Args:
        true: The true label of each answer.
        predicted: The predicted label of each answer, or None if it was not parsed.
        groups: The group of each answer.
        resamples: Number of bootstrap samples, may be 0.
        seed: Seed of the bootstrap.
        also: Additional classes to count even if they do not occur.

    Raises:
        ValueError: The sequences differ in length.
    """
    if not len(true) == len(predicted) == len(groups):
        raise ValueError(f"{len(true)} true labels, but {len(predicted)} answers and {len(groups)} groups")
    classes = tuple(sorted({*true, *also}))
    sums_GK = sums_by_group(_columns_NK(true, predicted, classes), groups)
    drawn_RK = drawn_sums(sums_GK, resamples, seed)
    return ClassCounts(
        classes, len(true), _split(sums_GK), _split(sums_GK.sum(axis=0, keepdims=True)), _split(drawn_RK)
    )


def by_class(counted: ClassCounts, ratio: Ratio, confidence: float = 0.95) -> tuple[Estimate, ...]:
    """Return the metric of each class with its interval.

    The interval is Wilson's if the groups have one answer each, otherwise from the bootstrap.

    ``n`` and ``groups`` of an estimate count the answers in the denominator. A bootstrap sample without such an answer
    is left out.
    """
    drawn_RK, n_groups_K = ratio.of(counted.drawn), (ratio.part(counted.by_group)[1] > 0).sum(axis=0)
    found = []
    for index, (successes, total) in enumerate(zip(*(part[0] for part in ratio.part(counted.whole)), strict=True)):
        n, n_groups = int(total), int(n_groups_K[index])
        fraction = wilson_proportion(int(successes), n, n_groups, confidence)
        if fraction is None:
            value = ratio.of(counted.whole)[0, index].item()
            found.append(bootstrapped(value, n, n_groups, drawn_RK[:, index], confidence))
        else:
            found.append(_curved(fraction, ratio.curve))
    return tuple(found)


def class_mean(counted: ClassCounts, ratio: Ratio, confidence: float = 0.95) -> Estimate:
    """Return the mean of the metric over the classes that occur in the truth, with its interval.

    The interval comes from the bootstrap by group. A class that a bootstrap sample lacks is left out of its mean. If
    every class is at 0 or 1, a bootstrap interval has no width. Then the Wilson intervals of the classes are combined
    ("wilson by class") as if the classes were independent: squared distances of the limits add up like variances (Zou
    and Donner 2008). A class with few groups that are all correct makes a bootstrap interval too narrow.
    """
    n_groups = len(counted.by_group.true)
    if not counted.n:
        return Estimate(None, 0, None, None, "none", 0, confidence)
    value = _mean_R(counted.whole, ratio).item()
    occurs = counted.whole.true[0] > 0
    if n_groups < 2 or not np.isin(ratio.of(counted.whole)[0, occurs], (0, 1)).all():
        return bootstrapped(value, counted.n, n_groups, _mean_R(counted.drawn, ratio), confidence)
    estimates = zip(by_class(counted, ratio, confidence), occurs, strict=True)
    below, above = _distances([found for found, here in estimates if here])
    low, high = max(0.0, value - below), min(1.0, value + above)
    return Estimate(value, counted.n, low, high, "wilson by class", n_groups, confidence)


def _against_rest(counted: ClassCounts, name: str, confidence: float) -> OneVsRest:
    pair = counted.one_vs_rest(name)
    sensitivity, specificity = by_class(pair, SENSITIVITY, confidence)
    precision, npv = by_class(pair, PRECISION, confidence)
    return OneVsRest(
        n=sensitivity.n,
        answered=precision.n,
        sensitivity=sensitivity,
        specificity=specificity,
        precision=precision,
        npv=npv,
        f1=by_class(pair, F1, confidence)[0],
        balanced_accuracy=class_mean(pair, SENSITIVITY, confidence),
    )


def _columns_NK(true: Sequence[str], predicted: Sequence[str | None], classes: Sequence[str]) -> np.ndarray:
    """Return hits, true labels and predictions per answer and class, side by side."""
    index = {name: code for code, name in enumerate(classes)}
    codes = np.arange(len(classes))
    true_NK = np.array([index[name] for name in true], dtype=int)[:, None] == codes
    answered_NK = np.array([-1 if name is None else index.get(name, -1) for name in predicted])[:, None] == codes
    return np.hstack([true_NK & answered_NK, true_NK, answered_NK]).astype(float)


def _split(sums_RK: np.ndarray) -> Counts:
    return Counts(*np.split(sums_RK, 3, axis=1))


def _curved(fraction: Estimate, curve: Callable[[Any], Any]) -> Estimate:
    if fraction.value is None:
        return fraction
    return replace(fraction, value=curve(fraction.value), low=curve(fraction.low), high=curve(fraction.high))


def _mean_R(counts: Counts, ratio: Ratio) -> np.ndarray:
    occurs_RK = counts.true > 0
    return np.asarray(np.where(occurs_RK, ratio.of(counts), 0).sum(axis=1) / occurs_RK.sum(axis=1))


def _distances(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Return the distances from the estimates' mean down to its lower and up to its upper limit."""
    limits = [(found.value, found.low, found.high) for found in estimates]
    below = math.hypot(*(value - low for value, low, _ in limits if value is not None and low is not None))
    above = math.hypot(*(high - value for value, _, high in limits if value is not None and high is not None))
    return below / len(limits), above / len(limits)
