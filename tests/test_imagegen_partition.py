"""Splits of rated images: by patient, stratified, the same on every machine."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.problems import raises
from tests.helpers.rated import rated, ratings_of
from toolkit.errors import DataError
from toolkit.imagegen.ratings.load import Ratings
from toolkit.imagegen.ratings.splits import partition, require_all_levels

FRACTIONS = {"selector": 0.4, "judge": 0.4, "test": 0.2}
MODALITIES = ("OCT", "CT", "MRI")


def many(n: int, seed: int = 0, patients: int = 0) -> Ratings:
    rng = np.random.default_rng(seed)
    images = [
        rated(
            f"{number}.png",
            rng.choice(3, rng.integers(1, 4), p=[0.1, 0.3, 0.6]).tolist(),
            MODALITIES[rng.choice(3, p=[0.6, 0.3, 0.1])],
            patient=f"p{rng.integers(patients)}" if patients else "",
        )
        for number in range(n)
    ]
    return ratings_of(images)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 60), st.integers(0, 5), st.sampled_from([0, 5, 30]))
def test_every_image_is_in_one_split_and_no_group_in_two(n: int, seed: int, patients: int) -> None:
    ratings = many(n, seed, patients)
    if len({image.group for image in ratings.images}) < 3:
        return
    splits = partition(ratings, FRACTIONS, seed)
    assert list(splits) == list(FRACTIONS)
    assert Counter(image for part in splits.values() for image in part.images) == Counter(ratings.images)
    groups = [{image.group for image in part.images} for part in splits.values()]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_sizes_levels_and_modalities_have_the_fractions() -> None:
    ratings = many(600)
    splits = partition(ratings, FRACTIONS, 7)
    for name, part in splits.items():
        for level in range(3):
            for modality in MODALITIES:
                n = sum(image.levels.count(level) for image in ratings.images if image.modality == modality)
                got = sum(image.levels.count(level) for image in part.images if image.modality == modality)
                assert abs(got - FRACTIONS[name] * n) <= max(3, 0.1 * FRACTIONS[name] * n), (name, level, modality)


def test_it_is_better_stratified_than_a_random_split() -> None:
    def error(parts: list[list[int]], ratings: Ratings) -> float:
        total = 0.0
        for part, fraction in zip(parts, FRACTIONS.values(), strict=True):
            counts = Counter((ratings.images[i].modality, level) for i in part for level in ratings.images[i].levels)
            whole = Counter((image.modality, level) for image in ratings.images for level in image.levels)
            total += sum(abs(counts[key] - fraction * n) for key, n in whole.items())
        return total

    ratings = many(200, 3, patients=80)
    position = {image: i for i, image in enumerate(ratings.images)}
    ours = [[position[image] for image in part.images] for part in partition(ratings, FRACTIONS, 0).values()]
    rng = np.random.default_rng(0)
    random = [np.split(rng.permutation(200), [80, 160]) for _ in range(20)]
    assert error(ours, ratings) < min(error([part.tolist() for part in one], ratings) for one in random)


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does() -> None:
    ratings = many(100)
    shuffled = ratings.only([ratings.images[i] for i in np.random.default_rng(0).permutation(100)])

    def names(which: Ratings, seed: int) -> dict[str, set[str]]:
        return {name: {image.name for image in part.images} for name, part in partition(which, FRACTIONS, seed).items()}

    assert names(ratings, 0) == names(shuffled, 0)
    assert names(ratings, 0) != names(ratings, 1)


@pytest.mark.slow
def test_the_split_does_not_depend_on_the_hash_seed_of_python() -> None:
    code = (
        "from test_imagegen_partition import FRACTIONS, many\n"
        "from toolkit.imagegen.ratings.splits import partition\n"
        "print([[image.name for image in part.images] for part in partition(many(60), FRACTIONS, 5).values()])"
    )
    outputs = set()
    for hash_seed in ("0", "1"):
        environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "PYTHONHASHSEED": hash_seed}
        outputs.add(
            subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
        )
    assert len(outputs) == 1


def test_a_rare_level_is_divided_among_the_training_splits_first() -> None:
    images = [rated(f"{n}", [2]) for n in range(97)] + [rated(f"low{n}", [0]) for n in range(3)]
    splits = partition(ratings_of([*images, *(rated(f"mid{n}", [1]) for n in range(30))]), FRACTIONS, 0)
    assert splits["selector"].level_counts()[0] >= 1
    assert splits["judge"].level_counts()[0] >= 1


def test_a_training_split_without_a_level_is_an_error_that_names_both() -> None:
    splits = {"selector": ratings_of([rated("a", [0, 1, 2])]), "judge": ratings_of([rated("b", [1, 2])])}
    with raises(DataError, "imagegen.training_levels_missing") as caught:
        require_all_levels(splits, ["selector", "judge"])
    assert caught.problem.value == "judge without 1"
    (warning,) = require_all_levels(splits, ["selector"])
    assert (warning.code, warning.place) == ("imagegen.split_levels_missing", "imagegen.ratings, split judge")
    assert warning.value == "1"
    assert require_all_levels({"selector": splits["selector"]}, ["selector"]) == ()


def test_fewer_groups_than_splits_are_an_error() -> None:
    with raises(DataError, "imagegen.groups_too_few"):
        partition(ratings_of([rated("a", [0], patient="p"), rated("b", [1], patient="p")]), FRACTIONS, 0)


def test_a_split_can_be_divided_again() -> None:
    selector = partition(many(300), FRACTIONS, 0)["selector"]
    parts = partition(selector, {"train": 0.85, "validation": 0.15}, 0)
    assert sum(part.count for part in parts.values()) == selector.count
    assert parts["validation"].count == pytest.approx(0.15 * selector.count, abs=5)
