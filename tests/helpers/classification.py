"""Classification metrics of labels in one call, as ``summarise`` computes them."""

from collections.abc import Sequence

from toolkit.scoring.statistics import ClassificationMetrics, Estimate
from toolkit.scoring.statistics.classification import F1, class_mean, count_classes, metrics_from_counts


def macro_f1(true: Sequence[str], predicted: Sequence[str | None]) -> float | None:
    """Return the mean F1 of the labels in ``true``, or None without answers."""
    return class_mean(count_classes(true, predicted, ["all"] * len(true), 0, 0), F1).value


def macro_f1_estimate(
    true: Sequence[str], predicted: Sequence[str | None], groups: Sequence[str], resamples: int, seed: int
) -> Estimate:
    """Return macro-F1 with its interval."""
    return class_mean(count_classes(true, predicted, groups, resamples, seed), F1)


def classification_metrics(
    labels: Sequence[tuple[str, str | None]],
    groups: Sequence[str],
    resamples: int,
    seed: int,
    positive: str | None = None,
    confidence: float = 0.95,
) -> ClassificationMetrics:
    """Return the metrics of (true, predicted) labels."""
    true, predicted = [a for a, _ in labels], [b for _, b in labels]
    counted = count_classes(true, predicted, groups, resamples, seed, () if positive is None else (positive,))
    return metrics_from_counts(counted, predicted, positive, confidence)
