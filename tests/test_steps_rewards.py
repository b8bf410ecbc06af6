"""Rewards of GUI steps: worked examples, applicability, and no credit for missing parts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Indel

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.text import label_text
from toolkit.tasks import TASKS
from toolkit.tasks.steps.rewards import EXAMPLE, REWARD_WEIGHTS, REWARDS, WHY, in_box
from toolkit.training.rewards import explain, reward_table

MISSING = Answer("?", {}, "there is no JSON object")
DONE = {"completed_subtasks": ["open the study", "choose the series"]}
RIGHT: dict[str, Any] = {
    "action": "CLICK",
    "target": "Load volume",
    "place": [110, 40],
    "memory": {"short_term": {}, "long_term": DONE},
    "faults": [],
}


def rewards(sample: Sample, **values: Any) -> dict[str, float | None]:
    answer = Answer("…", {**RIGHT, **values})
    return {name: reward(sample, answer) for name, reward in REWARDS.items()}


def other(**reference: Any) -> Sample:
    return replace(EXAMPLE, reference={**EXAMPLE.reference, **reference})


def test_a_correct_answer_has_every_reward_that_applies() -> None:
    assert rewards(EXAMPLE) == dict.fromkeys(REWARDS, 1.0) | {"iou": None}


def test_an_unparsed_answer_has_no_reward_even_if_the_reference_is_empty() -> None:
    bare = other(target=None, place=None, box=None, long_term={})
    for sample in (EXAMPLE, bare):
        assert {reward(sample, MISSING) for reward in REWARDS.values()} <= {0.0, None}
        assert REWARDS["action"](sample, MISSING) == 0.0
        assert REWARDS["json"](sample, MISSING) == 0.0


def test_whether_a_reward_applies_depends_on_the_reference_alone() -> None:
    bare = other(target=None, place=None, box=None, long_term={})
    area = other(place=[100, 30, 120, 50])
    for sample, none in ((EXAMPLE, {"iou"}), (area, set()), (bare, set(REWARDS) - {"action", "json"})):
        for answer in (MISSING, Answer("…", RIGHT), Answer("…", {**RIGHT, "place": None, "target": None})):
            assert {name for name, reward in REWARDS.items() if reward(sample, answer) is None} == none


@pytest.mark.parametrize(
    ("place", "inside"),
    [
        ([100, 30], 1),  # the left upper corner is in the box
        ([120, 49], 0),  # the right edge is exclusive
        ([119, 50], 0),  # so is the lower edge
        ([99, 31], 0),
        ([101, 29], 0),
        ([119, 49], 1),
        ([90, 20, 130, 60], 1),  # the centre of an answered box
        (None, 0),
    ],
)
def test_a_point_is_in_the_box_or_not(place: list[float] | None, inside: int) -> None:
    answer = Answer("…", {**RIGHT, "place": place})
    assert in_box(EXAMPLE, answer) == REWARDS["grounding"](EXAMPLE, answer) == inside


def test_without_a_box_grounding_is_the_distance() -> None:
    point = other(box=None)
    # 30 pixels to the right and 40 down are 50 pixels. The diagonal of 400 x 300 has 500.
    assert rewards(point, place=[140, 80])["grounding"] == pytest.approx(0.9)
    assert rewards(point, place=[5000, 5000])["grounding"] == 0


@pytest.mark.parametrize(
    ("named", "value"),
    [
        (["open the study", "choose the series"], 1),
        (["Open the study.", "CHOOSE the  series"], 1),
        (["open the study"], 2 / 3),  # 1 of 1 named, 1 of 2 expected
        (["open the study", "choose the series", "measure", "save"], 2 / 3),  # 2 of 4, 2 of 2
        ([], 0),
        (None, 0),
    ],
)
def test_memory_is_f1_over_completed_subtasks(named: list[str] | None, value: float) -> None:
    memory_ = {"short_term": {}, "long_term": {} if named is None else {"completed_subtasks": named}}
    assert rewards(EXAMPLE, memory=memory_)["memory"] == pytest.approx(value)


def test_an_empty_list_of_completed_subtasks_is_matched_by_an_empty_list() -> None:
    begun = other(long_term={"completed_subtasks": []})
    nothing: dict[str, Any] = {"short_term": {}, "long_term": {}}
    assert rewards(begun, memory=nothing)["memory"] == 1
    assert rewards(begun)["memory"] == 0
    assert REWARDS["memory"](begun, MISSING) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Zoom In", "zoom_in", True),
        ("'Save'", "save.", True),
        ("Zoom +", "Zoom -", False),
        ("+", "-", False),
        ("3.5 mm", "35 mm", False),
        ("left lung", "right lung", False),
        ("no nodule", "nodule", False),
        ("W/L", "w/l", True),
        ("A", "the", False),
    ],
)
def test_labels_ignore_case_blanks_and_punctuation(one: str, other: str, same: bool) -> None:
    assert (label_text(one) == label_text(other)) == same


@given(st.text(max_size=20))
def test_the_label_of_a_text_is_never_empty_and_is_its_own_label(text: str) -> None:
    assert bool(label_text(text)) == bool(text.casefold().split())
    assert label_text(label_text(text)) == label_text(text)


@given(st.text(alphabet="abc d", max_size=10), st.text(alphabet="abc d", min_size=1, max_size=10))
def test_the_fuzzy_similarity_counts_insertions_and_deletions(predicted: str, expected: str) -> None:
    value = rewards(other(target=expected), target=predicted)["target_fuzzy"]
    one, two = label_text(predicted), label_text(expected)
    assert value == pytest.approx(Indel.normalized_similarity(one, two) if one else 0)


def test_every_reward_has_a_default_weight_and_a_reason(tmp_path: Path) -> None:
    table = reward_table(TASKS["steps"], REWARD_WEIGHTS, (), tmp_path)
    assert table.weights == {"action": 0.4, "target": 0.2, "grounding": 0.2, "memory": 0.1, "json": 0.1}
    assert set(WHY) == set(REWARDS) == set(REWARD_WEIGHTS)
    scored = explain(EXAMPLE, Answer("…", {**RIGHT, "target": "Save", "faults": ["no Reason"]}), table)
    assert sum(one.points for one in scored) == pytest.approx(0.4 + 0.2 + 0.1)
    why = {one.reward: one.why for one in scored}
    assert why["target"] == 'read "save", reference "load volume"'
    assert why["json"] == "no Reason"
    assert why["memory"] == "named: choose the series, open the study; missed: nothing; invented: nothing"
    everything = reward_table(TASKS["steps"], dict.fromkeys(REWARD_WEIGHTS, 1.0), (), tmp_path)
    for answer in (MISSING, Answer("…", RIGHT)):
        assert all(one.why for one in explain(EXAMPLE, answer, everything))
        assert all(one.why for one in explain(other(target=None, place=None, long_term=None), answer, everything))
