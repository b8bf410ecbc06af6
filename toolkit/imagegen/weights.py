"""Weights of ratings by the expert's level. A weight scales a rating's part of the loss and never changes its label."""

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from toolkit.errors import DataError
from toolkit.imagegen.ratings import RatedImage, Ratings
from toolkit.recipe.imagegen import Imagegen

LEAST_IMAGES = 10
"""Images with several ratings that ``precision`` needs for each expert level."""

ROUNDING_VARIANCE = 1 / 12
"""Variance of rounding to whole levels: no expert can be known to be more precise."""


def expert_weights(section: Imagegen, ratings: Ratings) -> Mapping[int, float]:
    """Return the weight of each expert level, as ``section.expert_weight`` says.

    Args:
        section: the kind of weight, the expert levels, and the table.
        ratings: from which ``precision`` is estimated. Use training ratings only.

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
    rows = [pair for image in several for pair in _pairs(image, levels)]
    design_PL = np.array([row for row, _, _ in rows])
    squares_P, weights_P = (np.array([row[part] for row in rows]) for part in (1, 2))
    root_P = np.sqrt(weights_P)
    solution, _, rank, _ = np.linalg.lstsq(design_PL * root_P[:, None], squares_P * root_P, rcond=None)
    if rank < len(levels):
        raise _not_estimable(f"every pair of ratings of an image is by experts of different levels {levels}")
    return {level: max(ROUNDING_VARIANCE, float(value)) for level, value in zip(levels, solution, strict=True)}


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


def _pairs(image: RatedImage, levels: list[int]) -> Iterator[tuple[list[float], float, float]]:
    """Return for each pair of ratings the counts of levels, the squared difference, and the pair's weight."""
    weight = 1 / (len(image.ratings) - 1)
    for one, other in combinations(image.ratings, 2):
        row = [float((one.expert_level == level) + (other.expert_level == level)) for level in levels]
        yield row, float(one.level - other.level) ** 2, weight
