"""A metric with its interval, or with the reason why it is undefined."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np

from toolkit.scoring.statistics import Estimate
from toolkit.scoring.statistics.bootstrap import count_groups
from toolkit.scoring.statistics.intervals import bootstrapped


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate. If its value is None, ``reason`` says why."""

    estimate: Estimate
    reason: str | None = None

    def __post_init__(self) -> None:
        """Check that a missing value has a reason."""
        if (self.estimate.value is None) != (self.reason is not None):
            raise ValueError("a figure must have either a value or a reason")

    @property
    def value(self) -> float | None:
        """The value, None if undefined."""
        return self.estimate.value


class Rows(Protocol):
    """Scores of images, one row per image or rating."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modality of each row."""

    def take(self, rows: Sequence[int]) -> Self:
        """Return some of the rows."""


R = TypeVar("R", bound=Rows)


def split_by_modality(scores: R) -> dict[str, R]:
    """Return the rows of each modality, sorted by its name."""
    found: dict[str, list[int]] = {modality: [] for modality in sorted(set(scores.modalities))}
    for row, modality in enumerate(scores.modalities):
        found[modality].append(row)
    return {modality: scores.take(rows) for modality, rows in found.items()}


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Settings of the bootstrap by group."""

    resamples: int = 1000
    seed: int = 0
    confidence: float = 0.95


def undefined(reason: str, n: int, n_groups: int, confidence: float = 0.95) -> Figure:
    """Return a figure without a value."""
    return Figure(Estimate(None, n, None, None, "none", n_groups, confidence), reason)


def sample_weights(groups: Sequence[str], bootstrap: Bootstrap) -> np.ndarray:
    """Return weights_RN: how often each row is in each sample. Row 0 is the sample as it is, with weights of 1.

    A statistic of weighted rows is thus computed for the data and for all bootstrap samples at once.
    """
    codes = {group: code for code, group in enumerate(dict.fromkeys(groups))}
    n_groups = max(1, len(codes))
    rng = np.random.default_rng(bootstrap.seed)
    draws_RG = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=bootstrap.resamples).astype(float)
    index_N = np.array([codes[group] for group in groups], dtype=int)
    return np.concatenate([np.ones((1, len(groups))), draws_RG[:, index_N]])


def from_samples(values_R: np.ndarray, groups: Sequence[str], reason: str, bootstrap: Bootstrap) -> Figure:
    """Return the figure of a statistic's values in the samples of ``sample_weights``.

    Args:
        values_R: The value of the data first, then those of the bootstrap samples. NaN if undefined.
        groups: The group of each row.
        reason: Why the value of the data is undefined, if it is.
        bootstrap: Settings with which the samples were drawn.
    """
    n_groups = count_groups(groups)
    if np.isnan(values_R[0]):
        return undefined(reason, len(groups), n_groups, bootstrap.confidence)
    value = float(values_R[0])
    return Figure(bootstrapped(value, len(groups), n_groups, values_R[1:], bootstrap.confidence))
