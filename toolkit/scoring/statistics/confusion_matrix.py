"""Confusion matrix and majority class of labels. An unparsed answer is None and counts as wrong."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNREADABLE = "(unreadable)"
"""The column of unparsed answers."""


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """``counts[true][predicted]`` without zeros. ``labels`` are the true labels in order."""

    labels: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Majority:
    """The most frequent label. The majority baseline has accuracy ``count / n``. ``label`` is None if n is 0."""

    label: str | None
    count: int
    n: int


def confusion_matrix(true: Sequence[str], predicted: Sequence[str | None]) -> ConfusionMatrix:
    """Return how often each true label was answered with each label."""
    pairs = Counter((a, UNREADABLE if b is None else b) for a, b in zip(true, predicted, strict=True))
    labels = sorted(set(true))
    counts = {a: {b: n for (row, b), n in sorted(pairs.items()) if row == a} for a in labels}
    return ConfusionMatrix(tuple(labels), counts)


def majority(labels: Sequence[str]) -> Majority:
    """Return the most frequent label. Ties go to the first in sorted order."""
    counts = Counter(labels)
    if not counts:
        return Majority(None, 0, 0)
    label = min(counts, key=lambda name: (-counts[name], name))
    return Majority(label, counts[label], len(labels))
