"""Cluster bootstrap: sums over resamples of whole groups, drawn with replacement.

Answers about one patient, lesion or image are correlated. Resampling single answers would treat them as independent
evidence, and its intervals would be too narrow. Resampling whole groups keeps the correlation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CELLS = 4_000_000
"""Maximum number of draws in RAM at a time."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Resamples and seed of a bootstrap."""

    resamples: int
    seed: int


def count_groups(groups: Sequence[str]) -> int:
    """Return the number of distinct groups."""
    return len(set(groups))


def resampled_sums(columns_NK: np.ndarray, groups: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """Return the sum of each column over ``resamples`` bootstrap samples of whole groups.

    Any statistic of sums (a mean, F1) can then be computed for all resamples in one operation.

    Args:
        columns_NK: Shape (values, columns).
        groups: The group of each value.
        resamples: Number of bootstrap samples.
        seed: The same seed and number of groups give the same draws.

    Returns:
        Shape (resamples, columns).
    """
    return drawn_sums(sums_by_group(columns_NK, groups), resamples, seed)


def sums_by_group(columns_NK: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Return the sum of each column per group, shape (groups, columns), in order of first occurrence."""
    codes = {group: code for code, group in enumerate(dict.fromkeys(groups))}
    sums_GK = np.zeros((len(codes), columns_NK.shape[1]))
    np.add.at(sums_GK, np.array([codes[group] for group in groups], dtype=int), columns_NK)
    return sums_GK


def drawn_sums(sums_GK: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return ``resampled_sums`` from the result of ``sums_by_group``. Without groups the sums are zero."""
    n_groups = len(sums_GK)
    if not (n_groups and resamples):
        return np.zeros((resamples, sums_GK.shape[1]))
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // n_groups)
    parts = [
        _times_drawn(rng, min(chunk, resamples - start), n_groups) @ sums_GK for start in range(0, resamples, chunk)
    ]
    return np.concatenate(parts)


def drawn_weights(groups: Sequence[str], resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each value is drawn, shape (some resamples, values), for metrics that are no ratio of sums."""
    codes = {group: code for code, group in enumerate(dict.fromkeys(groups))}
    of_value_N = np.array([codes[group] for group in groups], dtype=int)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // max(1, len(groups)))
    for start in range(0, resamples if len(groups) else 0, chunk):
        yield _times_drawn(rng, min(chunk, resamples - start), len(codes))[:, of_value_N]


def drawn_positions(groups: Sequence[str], resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the positions of the values in each bootstrap sample, for metrics that are computed from the values."""
    members: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    positions = [np.array(of, np.int64) for of in members.values()]
    rng = np.random.default_rng(seed)
    for _ in range(resamples if len(positions) > 1 else 0):
        yield np.concatenate([positions[i] for i in rng.integers(0, len(positions), len(positions))])


def percentile_interval(statistics: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the central interval that contains the fraction ``confidence`` of the resampled statistics."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistics, [tail, 1 - tail])
    return float(low), float(high)


def _times_drawn(rng: np.random.Generator, samples: int, n_groups: int) -> np.ndarray:
    """Return how often each group was drawn per resample, shape (resamples, groups)."""
    # Each resample gets its own range of numbers, so that one bincount over all draws counts per resample.
    drawn = rng.integers(0, n_groups, size=(samples, n_groups)) + np.arange(samples)[:, None] * n_groups
    return np.bincount(drawn.ravel(), minlength=samples * n_groups).reshape(samples, n_groups).astype(float)
