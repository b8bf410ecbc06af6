"""Krippendorff's alpha against published numbers and a direct computation over pairs."""

import doctest
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.optional import defined
from tests.helpers.rated import rated, ratings_of
from toolkit.imagegen.ratings import load
from toolkit.imagegen.ratings.experts import agreement
from toolkit.imagegen.ratings.load import Rating

# Krippendorff (2011), section D: four observers, twelve units, values 1 to 5, missing values.
PUBLISHED = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
# Krippendorff (2011) as in Wikipedia's article on Krippendorff's alpha: three coders, fifteen units.
THREE_CODERS = (
    ". . . . . 3 4 1 2 1 1 3 3 . 3",
    "1 . 2 1 3 3 4 3 . . . . . . .",
    ". . 2 1 3 4 4 . 2 1 1 3 3 . 4",
)


def units(rows: tuple[str, ...]) -> list[list[int]]:
    columns = zip(*(row.split() for row in rows), strict=True)
    return [[int(value) - 1 for value in column if value != "."] for column in columns]


def alpha_of(levels: Sequence[Sequence[int]], count: int) -> float | None:
    """Alpha of units with ratings by different experts, as levels from 0 of ``count`` levels."""
    images = [rated(str(number), unit) for number, unit in enumerate(levels)]
    return agreement(ratings_of(images, count), resamples=2).alpha


def test_alpha_equals_krippendorffs_own_example() -> None:
    assert alpha_of(units(PUBLISHED), 5) == pytest.approx(0.815, abs=5e-4)


def test_alpha_equals_the_example_of_three_coders() -> None:
    assert alpha_of(units(THREE_CODERS), 4) == pytest.approx(0.8067, abs=5e-5)


def brute_force(data: list[list[int]]) -> float | None:
    """1 - observed / expected disagreement, summed over ordered pairs of ratings."""
    data = [unit for unit in data if len(unit) > 1]
    values = [value for unit in data for value in unit]

    @cache
    def difference(one: int, other: int) -> float:
        low, high = sorted((one, other))
        between = sum(low <= value <= high for value in values)
        return (between - (values.count(low) + values.count(high)) / 2) ** 2 if low != high else 0.0

    observed = sum(difference(*pair) / (len(unit) - 1) for unit in data for pair in permutations(unit, 2))
    expected = sum(difference(*pair) for pair in permutations(values, 2)) / max(1, len(values) - 1)
    return 1 - observed / expected if expected else None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=8))
def test_alpha_equals_a_direct_sum_over_pairs(data: list[list[int]]) -> None:
    expected = brute_force(data)
    assert alpha_of(data, 4) == (None if expected is None else pytest.approx(expected, abs=1e-9))


def test_perfect_agreement_is_1_and_chance_is_near_0() -> None:
    assert alpha_of([[n % 3, n % 3] for n in range(30)], 3) == 1.0
    chance = np.random.default_rng(0).integers(0, 3, (3000, 2)).tolist()
    assert alpha_of(chance, 3) == pytest.approx(0, abs=0.05)


def test_the_agreement_of_ratings_has_an_interval_and_counts() -> None:
    rng = np.random.default_rng(0)
    levels = [(int(level), int(np.clip(level + rng.integers(-1, 2), 0, 2))) for level in rng.integers(0, 3, 200)]
    images = [rated(str(n), pair) for n, pair in enumerate(levels)] + [rated("alone", [1])]
    found = agreement(ratings_of(images))
    assert found.alpha == pytest.approx(brute_force([list(pair) for pair in levels]))
    assert (found.images, found.ratings) == (200, 400)
    assert defined(found.low) < defined(found.alpha) < defined(found.high)
    assert defined(found.high) - defined(found.low) < 0.2
    assert agreement(ratings_of(images)) == found


def test_undefined_agreement_has_a_reason() -> None:
    alone = agreement(ratings_of([rated("a", [1]), rated("b", [2])]))
    equal = agreement(ratings_of([rated("a", [1, 1]), rated("b", [1, 1])]))
    for found in (alone, equal):
        assert found.alpha is None
        assert found.reason
    assert (alone.images, equal.images) == (0, 2)


def test_the_second_rating_of_an_image_by_the_same_rater_is_left_out() -> None:
    image = rated("a", [0, 2, 1])
    by = tuple(replace(rating, rater=name) for rating, name in zip(image.ratings, ("x", "x", "y"), strict=True))
    other = replace(image, name="b", ratings=(Rating(2, 1, "x"), Rating(2, 1, "y")))
    found = agreement(ratings_of([replace(image, ratings=by), other]))
    assert found.alpha == pytest.approx(brute_force([[0, 1], [2, 2]]))
    assert found.ratings == 4


def test_the_examples_in_docstrings_hold() -> None:
    result = doctest.testmod(load)
    assert result.attempted
    assert not result.failed
