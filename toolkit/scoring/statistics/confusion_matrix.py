"""Answers as labels, counted: confusion and majority. An answer that could not be read is None and counts as wrong."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNREADABLE = "(unreadable)"
"""The column of answers that could not be read."""


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """``counts[true][predicted]``: true labels in order, with the labels that were answered. Zeros are left out."""

    labels: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Majority:
    """The most frequent label: what always answering it would score is ``count / n``. None if n is 0."""

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
    """Return the most frequent label. Of equally frequent ones the first in sorted order."""
    counts = Counter(labels)
    if not counts:
        return Majority(None, 0, 0)
    label = min(counts, key=lambda name: (-counts[name], name))
    return Majority(label, counts[label], len(labels))
