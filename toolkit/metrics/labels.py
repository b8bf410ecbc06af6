"""Answers as labels: macro-F1, confusion, majority. An answer that could not be read is None and counts as wrong."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.metrics.estimate import Estimate
from toolkit.metrics.resampling import count_groups, percentile_interval, resampled_sums

UNREADABLE = "(unreadable)"
"""The column of answers that could not be read."""


@dataclass(frozen=True, slots=True)
class Confusion:
    """``counts[true][predicted]``: true labels in order, with the labels that were answered; zeros are left out."""

    labels: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Majority:
    """The most frequent label: what always answering it would score is ``count / n``. None where n is 0."""

    label: str | None
    count: int
    n: int


def macro_f1(true: Sequence[str], predicted: Sequence[str | None]) -> float | None:
    """Mean F1 of the labels that occur in ``true``, 0 to 1; None where there is no answer.

    A label that only the model uses gets no F1 of its own: such answers are misses of their true label, and so are
    answers that could not be read (scikit-learn: ``f1_score(..., labels=sorted(set(true)), average="macro")``).
    """
    return _macro_f1(_counts_NK(true, predicted).sum(axis=0, keepdims=True)).item() if true else None


def macro_f1_estimate(
    true: Sequence[str],
    predicted: Sequence[str | None],
    groups: Sequence[str],
    resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Estimate:
    """Macro-F1 with a bootstrap interval by group; a label that a drawn sample lacks does not enter its mean."""
    value, n_groups = macro_f1(true, predicted), count_groups(groups)
    if n_groups < 2:
        return Estimate(value, len(true), None, None, "none", n_groups, confidence)
    sums = resampled_sums(_counts_NK(true, predicted), groups, resamples, seed)
    low, high = percentile_interval(_macro_f1(sums), confidence)
    return Estimate(value, len(true), low, high, "bootstrap by group", n_groups, confidence)


def confusion(true: Sequence[str], predicted: Sequence[str | None]) -> Confusion:
    """How often each true label was answered with each label."""
    pairs = Counter((a, UNREADABLE if b is None else b) for a, b in zip(true, predicted, strict=True))
    labels = sorted(set(true))
    counts = {a: {b: n for (row, b), n in sorted(pairs.items()) if row == a} for a in labels}
    return Confusion(tuple(labels), counts)


def majority(labels: Sequence[str]) -> Majority:
    """The most frequent label; of equally frequent ones the first in sorted order."""
    counts = Counter(labels)
    if not counts:
        return Majority(None, 0, 0)
    label = min(counts, key=lambda name: (-counts[name], name))
    return Majority(label, counts[label], len(labels))


def _counts_NK(true: Sequence[str], predicted: Sequence[str | None]) -> np.ndarray:
    """Per answer and label, side by side: right, true, predicted."""
    labels = sorted(set(true))
    true_NL = np.array([[label == name for name in labels] for label in true], dtype=float)
    predicted_NL = np.array([[label == name for name in labels] for label in predicted], dtype=float)
    return np.hstack([true_NL * predicted_NL, true_NL, predicted_NL])


def _macro_f1(sums_RK: np.ndarray) -> np.ndarray:
    """Macro-F1 of each row of summed counts, over the labels that occur in it."""
    right, true, predicted = np.split(sums_RK, 3, axis=1)
    f1 = 2 * right / np.maximum(true + predicted, 1)
    return np.asarray(f1.sum(axis=1) / (true > 0).sum(axis=1))
