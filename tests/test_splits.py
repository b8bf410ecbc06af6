"""Splits by group are disjoint, reproducible and close to their fractions. Leaks match hand counts."""

import random
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.problems import raises
from toolkit.data.splits import find_leaks, join_groups, leaking_rows, row_keys, split_by_group
from toolkit.errors import DataError

Rows = list[tuple[str, list[str], str]]
FRACTIONS = {"test": 0.2, "validation": 0.1, "train": 0.7}

group_names = st.lists(st.sampled_from([f"p{i}" for i in range(12)]), min_size=1, max_size=60)
rows = st.lists(
    st.tuples(
        st.sampled_from(["p1", "p2", "p3", "p4"]),
        st.lists(st.sampled_from(["a.png", "b.png", "c.png", "d.png"]), max_size=2, unique=True),
        st.sampled_from(["Is it?", "is  it? ", "Where?"]),
    ),
    max_size=6,
)


@given(groups=group_names, seed=st.integers(0, 5))
def test_no_group_is_in_two_splits_and_fractions_are_exact_within_one_group(groups: list[str], seed: int) -> None:
    sizes = Counter(groups)
    if len(sizes) < 3:
        with raises(DataError, "data.too_few_groups") as caught:
            split_by_group(groups, FRACTIONS, seed)
        assert caught.problem.value == len(sizes)
        return
    splits = split_by_group(groups, FRACTIONS, seed)
    assert len(set(zip(groups, splits, strict=True))) == len(sizes)
    assert set(splits) == set(FRACTIONS)  # none is empty
    largest = max(sizes.values())
    found = Counter(splits)
    # Each border between two splits is less than one group behind its fraction, and there are two of them before the
    # last split. Where groups run short, a later split keeps at least one.
    for name, fraction in FRACTIONS.items():
        assert found[name] <= fraction * len(groups) + 2 * largest + 1


@given(groups=group_names, seed=st.integers(0, 3))
def test_the_split_of_a_group_does_not_depend_on_the_order_of_the_rows(groups: list[str], seed: int) -> None:
    if len(set(groups)) < 3:
        return
    shuffled = random.Random(0).sample(groups, len(groups))
    first = dict(zip(groups, split_by_group(groups, FRACTIONS, seed), strict=True))
    assert first == dict(zip(shuffled, split_by_group(shuffled, FRACTIONS, seed), strict=True))


def test_splits_are_the_same_on_every_machine_and_differ_by_seed() -> None:
    groups = [f"patient{i}" for i in range(10)]
    # Written down once: another result means that old runs can no longer be compared with new ones.
    assert [i for i, split in enumerate(split_by_group(groups, FRACTIONS, 3407)) if split == "test"] == [1, 6]
    assert len({tuple(split_by_group(groups, FRACTIONS, seed)) for seed in range(20)}) > 15


def test_fractions_are_exact_for_groups_of_one_row() -> None:
    found = Counter(split_by_group([f"p{i}" for i in range(1000)], FRACTIONS, 0))
    assert found == {"test": 200, "validation": 100, "train": 700}


def test_a_fraction_of_zero_gets_no_row() -> None:
    assert set(split_by_group(["a", "b"], {"test": 0.0, "train": 1.0}, 0)) == {"train"}


@given(first=rows, second=rows)
def test_leaks_are_counted_as_by_hand(first: Rows, second: Rows) -> None:
    report = find_leaks({"train": row_keys(first), "test": row_keys(second)})

    def by_hand(values: list[set[Any]]) -> int:
        return len(values[0] & values[1])

    both = (first, second)
    groups = by_hand([{group for group, *_ in part} for part in both])
    images = by_hand([{image for _, images, _ in part for image in images} for part in both])
    words = [[(images, " ".join(question.lower().split())) for _, images, question in part] for part in both]
    pairs = by_hand([{(image, question) for images, question in part for image in images} for part in words])
    assert (report.count("group"), report.count("image"), report.count("question")) == (groups, images, pairs)
    assert bool(report) == bool(groups or images)
    for leak in report.leaks:
        for one, other in leak.examples:
            mine, theirs = first[one], second[other]
            assert mine[0] == theirs[0] if leak.kind == "group" else set(mine[1]) & set(theirs[1])


@given(first=rows, second=rows)
def test_without_the_leaking_rows_nothing_leaks(first: Rows, second: Rows) -> None:
    train, test = row_keys(first), row_keys(second)
    kept = train.take(np.flatnonzero(~leaking_rows(train, [test])))
    assert not find_leaks({"train": kept, "test": test})


@given(first=rows, chosen=st.sets(st.integers(0, 5)))
def test_keys_of_taken_rows_equal_the_keys_of_these_rows(first: Rows, chosen: set[int]) -> None:
    numbers = sorted(number for number in chosen if number < len(first))
    taken, direct = row_keys(first).take(np.array(numbers, np.int64)), row_keys([first[number] for number in numbers])
    for name in ("groups", "questions", "images", "image_rows"):
        assert getattr(taken, name).tolist() == getattr(direct, name).tolist()


@given(given_rows=rows)
def test_groups_with_a_common_image_are_joined_and_no_others(given_rows: Rows) -> None:
    joined = join_groups(row_keys(given_rows)).tolist()
    # By hand: groups are joined until nothing changes.
    name = {group: group for group, *_ in given_rows}
    for _ in given_rows:
        for group, images, _question in given_rows:
            for other, others, _question in given_rows:
                if set(images) & set(others):
                    name[group] = name[other] = min(name[group], name[other])
    expected = [name[group] for group, *_ in given_rows]
    assert [[one == two for two in joined] for one in joined] == [[one == two for two in expected] for one in expected]


def test_every_two_splits_are_compared_and_the_report_reads_as_sentences() -> None:
    part = row_keys([("p1", ["a.png"], "Where?")])
    report = find_leaks({"train": row_keys([]), "validation": part, "test": part})
    assert {(leak.first, leak.second) for leak in report.leaks} == {("validation", "test")}
    assert str(report).startswith("1 group of test also in validation; 1 image of test")
    assert str(find_leaks({})) == "no group, image or (image, question) pair is in two splits"
