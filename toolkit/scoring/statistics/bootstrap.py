"""The bootstrap by group: sums over samples that are drawn from whole groups with replacement."""

from collections.abc import Sequence

import numpy as np

_CELLS = 4_000_000
"""Draws that are held in memory at a time."""


def count_groups(groups: Sequence[str]) -> int:
    """Return number of different groups."""
    return len(set(groups))


def resampled_sums(columns_NK: np.ndarray, groups: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """Return sums of each column over ``resamples`` samples of as many groups as there are, drawn with replacement.

    Any statistic that is made of sums (a mean, F1) is then computed for all samples together.

    Args:
        columns_NK: values x columns.
        groups: each value's group.
        resamples: number of drawn samples.
        seed: the same seed and number of groups give the same draws.

    Returns:
        resamples x columns.
    """
    return drawn_sums(sums_by_group(columns_NK, groups), resamples, seed)


def sums_by_group(columns_NK: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Return sums of each column over the values of each group: groups, in the order of their first values, x columns."""
    codes = {group: code for code, group in enumerate(dict.fromkeys(groups))}
    sums_GK = np.zeros((len(codes), columns_NK.shape[1]))
    np.add.at(sums_GK, np.array([codes[group] for group in groups], dtype=int), columns_NK)
    return sums_GK


def drawn_sums(sums_GK: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """``resampled_sums`` of what ``sums_by_group`` returned. Zeros where there is no group."""
    n_groups = len(sums_GK)
    if not (n_groups and resamples):
        return np.zeros((resamples, sums_GK.shape[1]))
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // n_groups)
    parts = [
        _times_drawn(rng, min(chunk, resamples - start), n_groups) @ sums_GK for start in range(0, resamples, chunk)
    ]
    return np.concatenate(parts)


def percentile_interval(statistics: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the central share ``confidence`` of the drawn samples' statistics."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistics, [tail, 1 - tail])
    return float(low), float(high)


def _times_drawn(rng: np.random.Generator, samples: int, n_groups: int) -> np.ndarray:
    """Return how often each group is in each sample: samples x groups."""
    drawn = rng.integers(0, n_groups, size=(samples, n_groups)) + np.arange(samples)[:, None] * n_groups
    return np.bincount(drawn.ravel(), minlength=samples * n_groups).reshape(samples, n_groups).astype(float)
