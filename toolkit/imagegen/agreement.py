"""Krippendorff's alpha: the agreement of experts beyond chance, for ordinal ratings.

After Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, University of Pennsylvania.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.imagegen.ratings import RatedImage, Ratings
from toolkit.scoring.statistics.bootstrap import drawn_sums, percentile_interval

Floats = NDArray[np.float64]
Metric = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Krippendorff's alpha and its bootstrap interval over images.

    Attributes:
        alpha: 1 for perfect agreement, 0 for chance. None: undefined, and ``reason`` says why.
        low, high: the 95 % interval. None: undefined.
        images: images with ratings by two experts or more.
        ratings: their ratings.
        reason: why ``alpha`` is None.
    """

    alpha: float | None
    low: float | None
    high: float | None
    images: int
    ratings: int
    reason: str = ""


def agreement(ratings: Ratings, resamples: int = 2000, seed: int = 0) -> Agreement:
    """Return the ordinal alpha over all images that two experts or more have rated.

    If a rater has rated an image twice, the first rating counts: alpha compares raters, and two ratings by one rater
    would add agreement. Ratings without a rater's id count as ratings by different raters.

    Args:
        ratings: the rated images.
        resamples: bootstrap samples of the images.
        seed: of the bootstrap.
    """
    units = [levels for image in ratings.images if len(levels := _levels_by_rater(image)) > 1]
    n_images, n_ratings = len(units), sum(map(len, units))
    if not units:
        return Agreement(None, None, None, 0, 0, "no image has ratings by two experts")
    size = len(ratings.rating_range)
    matrices_UK = np.stack([_coincidences(unit, size).ravel() for unit in units])
    alpha = _alpha(matrices_UK.sum(0).reshape(size, size), _ordinal)
    if alpha is None:
        return Agreement(None, None, None, n_images, n_ratings, "all ratings are equal")
    drawn = [_alpha(sums.reshape(size, size), _ordinal) for sums in drawn_sums(matrices_UK, resamples, seed)]
    defined = np.array([value for value in drawn if value is not None])
    if n_images < 2 or not len(defined):
        return Agreement(alpha, None, None, n_images, n_ratings)
    return Agreement(alpha, *percentile_interval(defined, 0.95), n_images, n_ratings)


def krippendorff_alpha(units: Sequence[Sequence[int]], levels: int, metric: Metric = "ordinal") -> float | None:
    """Return alpha, or None if it is undefined (no pair of ratings, or all ratings are equal).

    Args:
        units: the ratings of each unit, as levels from 0.
        levels: number of levels.
        metric: the difference of two levels.

    >>> krippendorff_alpha([[0, 0], [1, 1], [2, 2], [0, 1]], levels=3)
    0.79
    """
    coincidences_KK = sum((_coincidences(unit, levels) for unit in units), np.zeros((levels, levels)))
    return _alpha(coincidences_KK, _METRICS[metric])


def _coincidences(unit: Sequence[int], levels: int) -> Floats:
    """Return a unit's ordered pairs of ratings by level, each weighted by 1 / (ratings - 1): levels x levels."""
    counts_K = np.bincount(np.asarray(unit, dtype=int), minlength=levels).astype(float)
    if counts_K.sum() < 2:
        return np.zeros((levels, levels))
    return np.asarray((np.outer(counts_K, counts_K) - np.diag(counts_K)) / (counts_K.sum() - 1))


def _alpha(coincidences_KK: Floats, metric: Callable[[Floats], Floats]) -> float | None:
    totals_K = coincidences_KK.sum(0)
    differences_KK = metric(totals_K)
    expected = (np.outer(totals_K, totals_K) * differences_KK).sum()
    if not expected:
        return None
    # The outer product has no -1 for equal levels, whose difference is 0.
    return float(1 - (totals_K.sum() - 1) * (coincidences_KK * differences_KK).sum() / expected)


def _nominal(totals_K: Floats) -> Floats:
    return np.asarray(1 - np.eye(len(totals_K)))


def _interval(totals_K: Floats) -> Floats:
    levels_K = np.arange(len(totals_K), dtype=float)
    return np.asarray((levels_K[:, None] - levels_K) ** 2)


def _ordinal(totals_K: Floats) -> Floats:
    """Return the squared number of ratings from one level to the other, each end counted by half."""
    places_K = np.cumsum(totals_K) - totals_K / 2
    return np.asarray((places_K[:, None] - places_K) ** 2)


_METRICS: Mapping[Metric, Callable[[Floats], Floats]] = {
    "nominal": _nominal,
    "ordinal": _ordinal,
    "interval": _interval,
}


def _levels_by_rater(image: RatedImage) -> list[int]:
    seen: set[str] = set()
    levels = []
    for rating in image.ratings:
        if not rating.rater or rating.rater not in seen:
            levels.append(rating.level)
        seen.add(rating.rater)
    return levels
