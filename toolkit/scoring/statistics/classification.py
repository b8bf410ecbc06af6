"""Classification metrics: balanced accuracy and macro-F1, and each class against the rest.

An unparsed answer is wrong for its true class and a hit of no class. It names no class, so it counts as a correct "not
this class" for every other class. Specificity hides such answers, so ``ClassificationMetrics.unreadable`` counts them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolkit.scoring.statistics.class_counts import (
    F1,
    PRECISION,
    SENSITIVITY,
    ClassCounts,
    by_class,
    class_mean,
    count_classes,
)
from toolkit.scoring.statistics.intervals import Estimate


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


def macro_f1(true: Sequence[str], predicted: Sequence[str | None]) -> float | None:
    """Return the mean F1 of the labels in ``true``, in [0, 1], or None without answers.

    A label that is only predicted gets no F1 of its own. Such answers and unparsed answers are misses of their true
    label (scikit-learn: ``f1_score(..., labels=sorted(set(true)), average="macro")``).

    Raises:
        ValueError: The sequences differ in length.
    """
    return class_mean(count_classes(true, predicted, ["all"] * len(true), 0, 0), F1).value


def macro_f1_estimate(
    true: Sequence[str],
    predicted: Sequence[str | None],
    groups: Sequence[str],
    resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Estimate:
    """Return macro-F1 with the interval of ``class_mean``."""
    return class_mean(count_classes(true, predicted, groups, resamples, seed), F1, confidence)


def classification_metrics(
    labels: Sequence[tuple[str, str | None]],
    groups: Sequence[str],
    resamples: int,
    seed: int,
    positive: str | None = None,
    confidence: float = 0.95,
) -> ClassificationMetrics:
    """Return balanced accuracy, and the one-vs-rest metrics of each class.

    A proportion whose groups have one answer each, or with no or only hits, gets Wilson's interval. All others get a
    bootstrap interval over groups. All metrics use the same bootstrap samples.

    Args:
        labels: (true, predicted) per answer. The prediction is None if the answer was not parsed.
        groups: The group of each answer.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
        positive: A class that is included even if no answer has it as its true label.
        confidence: Confidence level of the intervals.

    Raises:
        ValueError: The sequences differ in length.
    """
    true, predicted = [a for a, _ in labels], [b for _, b in labels]
    counted = count_classes(true, predicted, groups, resamples, seed, () if positive is None else (positive,))
    return metrics_from_counts(counted, predicted, positive, confidence)


def metrics_from_counts(
    counted: ClassCounts, predicted: Sequence[str | None], positive: str | None, confidence: float = 0.95
) -> ClassificationMetrics:
    """Return ``classification_metrics`` from existing counts and the predictions behind them."""
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
