"""Intra-rater agreement: how consistently a rater rates the same image twice, as a rating sheet shows some images."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from toolkit.imagegen.ratings import RatedImage, Ratings
from toolkit.imagegen.weighted import kappa_of_counts
from toolkit.scoring.statistics.bootstrap import drawn_sums, percentile_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class IntraRater:
    """Agreement of first and second ratings.

    Attributes:
        kappa: Cohen's kappa with quadratic weights: 1 for perfect agreement, 0 for chance. None: undefined, and
            ``reason`` says why.
        low, high: the 95 % bootstrap interval over images. None: undefined.
        n: pairs of a first and a second rating.
        images: images with at least one pair.
        equal: fraction of pairs with equal ratings. None: no pair.
        reason: why ``kappa`` is None.
        by_rater: the same for each rater. Empty if there is no pair, and for one rater.
    """

    kappa: float | None
    low: float | None
    high: float | None
    n: int
    images: int
    equal: float | None
    reason: str = ""
    by_rater: Mapping[str, "IntraRater"] = field(default_factory=dict)


def intra_rater_agreement(ratings: Ratings, resamples: int = 2000, seed: int = 0) -> IntraRater:
    """Return the agreement of raters with themselves.

    A pair is the first two ratings of an image by a rater in one file: a sheet has both on one page. The same page
    downloaded twice is no second rating. Ratings without a rater's id are left out.

    Args:
        ratings: from ``load_ratings``.
        resamples: bootstrap samples of the images.
        seed: of the bootstrap.
    """
    pairs = [(image.name, rater, first, second) for image in ratings.images for rater, first, second in _pairs(image)]
    size = len(ratings.rating_range)
    raters = sorted({rater for _, rater, _, _ in pairs})
    by_rater = {
        rater: _figures([pair for pair in pairs if pair[1] == rater], size, resamples, seed) for rater in raters
    }
    whole = _figures(pairs, size, resamples, seed)
    return IntraRater(whole.kappa, whole.low, whole.high, whole.n, whole.images, whole.equal, whole.reason, by_rater)


def quadratic_weighted_kappa(first: Sequence[int], second: Sequence[int], levels: int) -> float | None:
    """Return Cohen's kappa with quadratic weights (Cohen 1968), or None if all ratings are of one level.

    Args:
        first: levels from 0.
        second: as many levels.
        levels: number of levels.

    >>> quadratic_weighted_kappa([0, 1, 2, 2], [0, 1, 2, 1], levels=3)
    0.8
    """
    counts_KK = np.zeros((levels, levels))
    np.add.at(counts_KK, (np.asarray(first, dtype=int), np.asarray(second, dtype=int)), 1)
    return _kappa(counts_KK)


_Pair = tuple[str, str, int, int]
"""Image, rater, first and second level."""


def _pairs(image: RatedImage) -> Iterator[tuple[str, int, int]]:
    """Return each rater's first two levels that are in one file."""
    seen: dict[tuple[str, str], list[int]] = {}
    for rating in image.ratings:
        if rating.rater:
            seen.setdefault((rating.rater, rating.place.rpartition(", row ")[0]), []).append(rating.level)
    found: dict[str, tuple[int, int]] = {}
    for (rater, _), levels in seen.items():
        if len(levels) > 1:
            found.setdefault(rater, (levels[0], levels[1]))
    return ((rater, first, second) for rater, (first, second) in found.items())


def _figures(pairs: Sequence[_Pair], size: int, resamples: int, seed: int) -> IntraRater:
    counts: dict[str, Floats] = {}
    for name, _, first, second in pairs:
        counts.setdefault(name, np.zeros((size, size)))[first, second] += 1
    if not counts:
        return IntraRater(None, None, None, 0, 0, None, "no image was rated twice by one rater")
    counts_UC = np.stack([matrix.ravel() for matrix in counts.values()])
    total_KK = counts_UC.sum(0).reshape(size, size)
    kappa, n, equal = _kappa(total_KK), len(pairs), float(np.trace(total_KK) / total_KK.sum())
    if kappa is None:
        return IntraRater(None, None, None, n, len(counts), equal, "all ratings are equal")
    drawn = [_kappa(sums.reshape(size, size)) for sums in drawn_sums(counts_UC, resamples, seed)]
    defined = np.array([value for value in drawn if value is not None])
    if len(counts) < 2 or not len(defined):
        return IntraRater(kappa, None, None, n, len(counts), equal)
    return IntraRater(kappa, *percentile_interval(defined, 0.95), n, len(counts), equal)


def _kappa(counts_KK: Floats) -> float | None:
    kappa = float(kappa_of_counts(counts_KK[None])[0])
    return None if math.isnan(kappa) else kappa
