"""How reliable experts are: agreement with each other and with themselves, and the weight of their ratings.

Krippendorff's alpha (inter-rater, ordinal) follows Krippendorff (2011), Computing Krippendorff's Alpha-Reliability,
University of Pennsylvania. Cohen's kappa with quadratic weights (intra-rater) follows Cohen (1968).
A weight scales a rating's part of the loss and never changes its label.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError
from toolkit.imagegen.evaluation.statistics import kappa_of_counts
from toolkit.imagegen.ratings.load import RatedImage, Ratings
from toolkit.recipe.imagegen import Imagegen
from toolkit.scoring.statistics.bootstrap import drawn_sums, percentile_interval

Floats = NDArray[np.float64]

LEAST_IMAGES = 10
"""Images with several ratings that ``precision`` needs for each expert level."""

ROUNDING_VARIANCE = 1 / 12
"""Variance of rounding to whole levels: no expert can be known to be more precise."""


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
        seed: the seed of the bootstrap.
    """
    units = [levels for image in ratings.images if len(levels := _levels_by_rater(image)) > 1]
    n_images, n_ratings = len(units), sum(map(len, units))
    if not units:
        return Agreement(None, None, None, 0, 0, "no image has ratings by two experts")
    size = len(ratings.rating_range)
    matrices_UK = np.stack([_coincidences(unit, size).ravel() for unit in units])
    alpha = _alpha(matrices_UK.sum(0).reshape(size, size))
    if alpha is None:
        return Agreement(None, None, None, n_images, n_ratings, "all ratings are equal")
    drawn = [_alpha(sums.reshape(size, size)) for sums in drawn_sums(matrices_UK, resamples, seed)]
    defined = np.array([value for value in drawn if value is not None])
    if n_images < 2 or not len(defined):
        return Agreement(alpha, None, None, n_images, n_ratings)
    return Agreement(alpha, *percentile_interval(defined, 0.95), n_images, n_ratings)


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
        ratings: the ratings from ``load_ratings``.
        resamples: bootstrap samples of the images.
        seed: the seed of the bootstrap.
    """
    pairs = [(image.name, rater, first, second) for image in ratings.images for rater, first, second in _repeats(image)]
    size = len(ratings.rating_range)
    raters = sorted({rater for _, rater, _, _ in pairs})
    by_rater = {
        rater: _intra_rater([pair for pair in pairs if pair[1] == rater], size, resamples, seed) for rater in raters
    }
    whole = _intra_rater(pairs, size, resamples, seed)
    return IntraRater(whole.kappa, whole.low, whole.high, whole.n, whole.images, whole.equal, whole.reason, by_rater)


_Repeat = tuple[str, str, int, int]
"""Image, rater, first and second level."""


def expert_weights(section: Imagegen, ratings: Ratings) -> Mapping[int, float]:
    """Return the weight of each expert level, as ``section.expert_weight`` says.

    Args:
        section: the kind of weight, the expert levels, and the table.
        ratings: the ratings from which ``precision`` is estimated. Use training ratings only.

    Raises:
        DataError: ``precision`` cannot be estimated from these ratings.
    """
    levels = section.expert_levels
    if section.expert_weight == "linear":
        return {level: level / max(levels) for level in levels}
    if section.expert_weight == "table":
        return {level: section.expert_table[str(level)] for level in levels}
    present = sorted({rating.expert_level for _, rating in ratings.pairs})
    variances = expert_variances(ratings)
    smallest = min(variances.values())
    return {level: smallest / variances[level] for level in present}


def expert_variances(ratings: Ratings) -> Mapping[int, float]:
    """Estimate the error variance of each expert level that occurs, in squared rating levels.

    The model is rating = quality of the image + error, with independent errors. The squared difference of two ratings
    of one image then has the sum of both error variances as its expectation. The variances are the least-squares
    solution over all pairs, each weighted by 1 / (ratings of its image - 1), so that every rating counts equally.

    Raises:
        DataError: a level has too few images with several ratings, or only the sum of two variances is known.
    """
    levels = sorted({rating.expert_level for _, rating in ratings.pairs})
    several = [image for image in ratings.images if len(image.ratings) > 1]
    _require_images(levels, several)
    rows = [pair for image in several for pair in _rating_pairs(image, levels)]
    design_PL = np.array([row for row, _, _ in rows])
    squares_P, weights_P = (np.array([row[part] for row in rows]) for part in (1, 2))
    root_P = np.sqrt(weights_P)
    solution, _, rank, _ = np.linalg.lstsq(design_PL * root_P[:, None], squares_P * root_P, rcond=None)
    if rank < len(levels):
        raise _not_estimable(f"every pair of ratings of an image is by experts of different levels {levels}")
    return {level: max(ROUNDING_VARIANCE, float(value)) for level, value in zip(levels, solution, strict=True)}


def _coincidences(unit: Sequence[int], levels: int) -> Floats:
    """Return a unit's ordered pairs of ratings by level, each weighted by 1 / (ratings - 1): levels x levels."""
    counts_K = np.bincount(np.asarray(unit, dtype=int), minlength=levels).astype(float)
    if counts_K.sum() < 2:
        return np.zeros((levels, levels))
    return np.asarray((np.outer(counts_K, counts_K) - np.diag(counts_K)) / (counts_K.sum() - 1))


def _alpha(coincidences_KK: Floats) -> float | None:
    """Return the ordinal alpha, or None if all ratings are equal."""
    totals_K = coincidences_KK.sum(0)
    differences_KK = _ordinal(totals_K)
    expected = (np.outer(totals_K, totals_K) * differences_KK).sum()
    if not expected:
        return None
    # The outer product has no -1 for equal levels, whose difference is 0.
    return float(1 - (totals_K.sum() - 1) * (coincidences_KK * differences_KK).sum() / expected)


def _ordinal(totals_K: Floats) -> Floats:
    """Return the squared number of ratings from one level to the other, each end counted by half."""
    places_K = np.cumsum(totals_K) - totals_K / 2
    return np.asarray((places_K[:, None] - places_K) ** 2)


def _levels_by_rater(image: RatedImage) -> list[int]:
    seen: set[str] = set()
    levels = []
    for rating in image.ratings:
        if not rating.rater or rating.rater not in seen:
            levels.append(rating.level)
        seen.add(rating.rater)
    return levels


def _repeats(image: RatedImage) -> Iterator[tuple[str, int, int]]:
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


def _intra_rater(pairs: Sequence[_Repeat], size: int, resamples: int, seed: int) -> IntraRater:
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


def _require_images(levels: list[int], several: list[RatedImage]) -> None:
    counts = {level: sum(any(r.expert_level == level for r in image.ratings) for image in several) for level in levels}
    few = {level: count for level, count in counts.items() if count < LEAST_IMAGES}
    if few or not levels:
        found = ", ".join(f"{count} for level {level}" for level, count in few.items())
        raise _not_estimable(f"images with several ratings: {found or 'none'}")


def _not_estimable(found: str) -> DataError:
    return DataError(
        "imagegen.expert_ratings_too_few",
        f'"precision" must have {LEAST_IMAGES} images with several ratings for each expert level',
        place="imagegen.expert_weight",
        value=found,
        remedy='Set imagegen.expert_weight to "linear" or "table", or add ratings of the same images.',
    )


def _rating_pairs(image: RatedImage, levels: list[int]) -> Iterator[tuple[list[float], float, float]]:
    """Return for each pair of ratings the counts of levels, the squared difference, and the pair's weight."""
    weight = 1 / (len(image.ratings) - 1)
    for one, other in combinations(image.ratings, 2):
        row = [float((one.expert_level == level) + (other.expert_level == level)) for level in levels]
        yield row, float(one.level - other.level) ** 2, weight
