"""Label figures: balanced accuracy and macro-F1, and each class against the rest.

An answer that cannot be parsed is wrong for its true class and a hit of no class. It names no class, so it counts as a
correct "not this class" for every other class. Specificity hides such answers: read it with
``ClassificationMetrics.unreadable``.
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
    """One class against all that is not it, an answer that could not be read among the rest.

    Each estimate's ``n`` is that of the answers it is a fraction of: for sensitivity those that are the class, for
    specificity those that are not, for precision those that say it, for F1 those that are it or say it. Without such
    answers the value is None, never a free 1.
    """

    n: int
    """Answers whose true label is the class."""
    answered: int
    """Answers that say the class."""
    sensitivity: Estimate
    """Recall."""
    specificity: Estimate
    precision: Estimate
    """Positive predictive value, at the fraction that the class has among these answers."""
    npv: Estimate
    """Negative predictive value."""
    f1: Estimate
    balanced_accuracy: Estimate
    """Mean of sensitivity and specificity. Of the one that has a value where the other has none."""


@dataclass(frozen=True, slots=True)
class ClassificationMetrics:
    """What ``n`` answers with labels are worth, class by class."""

    n: int
    groups: int
    unreadable: int
    """Answers without a label."""
    foreign: int
    """Answers with a label that is none of ``classes``: wrong, and like unread ones in all figures."""
    balanced_accuracy: Estimate
    """Mean sensitivity of the classes that occur in the truth (scikit-learn's ``balanced_accuracy_score``)."""
    classes: Mapping[str, OneVsRest]
    """Those that occur in the truth, in sorted order, and ``positive``."""
    positive: str | None
    """The class that is of interest, such as melanoma. It is in ``classes`` even where no answer is about it."""


def macro_f1(true: Sequence[str], predicted: Sequence[str | None]) -> float | None:
    """Return mean F1 of the labels that occur in ``true``, 0 to 1; None if there is no answer.

    A label that only the model uses gets no F1 of its own: such answers are misses of their true label, and so are
    answers that could not be read (scikit-learn: ``f1_score(..., labels=sorted(set(true)), average="macro")``).

    Raises:
        ValueError: the sequences differ in length.
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
    """Return Macro-F1 with an interval. See ``count_classes.class_mean``."""
    return class_mean(count_classes(true, predicted, groups, resamples, seed), F1, confidence)


def classification_metrics(
    labels: Sequence[tuple[str, str | None]],
    groups: Sequence[str],
    resamples: int,
    seed: int,
    positive: str | None = None,
    confidence: float = 0.95,
) -> ClassificationMetrics:
    """Return balanced accuracy, and sensitivity, specificity, precision, NPV, F1 and balanced accuracy of each class.

    Shares whose groups have one answer each, or are all right or all wrong, get Wilson's interval, all others the
    bootstrap over groups. All figures come from the same drawn samples.

    Args:
        labels: (true, answered) of each answer, None if it could not be read.
        groups: each answer's group.
        resamples: number of drawn samples.
        seed: of the draws.
        positive: a class that gets its figures even where no true label is it.
        confidence: of the intervals.

    Raises:
        ValueError: the sequences differ in length.
    """
    true, predicted = [a for a, _ in labels], [b for _, b in labels]
    counted = count_classes(true, predicted, groups, resamples, seed, () if positive is None else (positive,))
    return metrics_from_counts(counted, predicted, positive, confidence)


def metrics_from_counts(
    counted: ClassCounts, predicted: Sequence[str | None], positive: str | None, confidence: float = 0.95
) -> ClassificationMetrics:
    """``classification_metrics`` of answers that are counted already; ``predicted`` are theirs."""
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
