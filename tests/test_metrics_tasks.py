"""Episode metrics against hand-computed figures."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.scoring.statistics import EpisodePosition, ScoredAnswer, episode_metrics, find_scored_episodes
from toolkit.scoring.statistics.episodes import BEFORE_FAILURE, WHOLE, ScoredEpisode

Values = dict[str, list[float | None]]


def answers(tasks: Values, by: str = "viewer") -> tuple[list[ScoredAnswer], dict[str, EpisodePosition]]:
    """Task -> the score of each step (None: the answer could not be parsed)."""
    rows, positions = [], {}
    for task, values in tasks.items():
        for place, value in enumerate(values, start=1):
            name = f"{task}/{place}"
            problem = "no JSON" if value is None else None
            columns = {"application": f"{by} {task[0]}", "action": str(place)}
            rows.append(ScoredAnswer(name, task, {"step": value or 0.0}, by=columns, problem=problem))
            positions[name] = EpisodePosition(task, place, len(values))
    return rows, positions


FOUR: Values = {"a1": [1, 1, 1, 1], "a2": [1, 1, 0, 1], "b1": [0, 1, 1], "b2": [1, None, 0, 0, 1]}
"""All correct, and first failures at step 3 of 4, 1 of 3, and 2 of 5 (with an answer that cannot be parsed)."""


def test_whole_tasks_first_failures_and_survival_match_hand_computed_values() -> None:
    found = episode_metrics(*answers(FOUR), "step", 200, 1)
    assert (found.n, found.incomplete) == (4, 0)
    assert (found.whole.value, found.whole.n, found.whole.method) == (0.25, 4, "wilson")
    # 1, 2 of 4, 0 of 3, 1 of 5.
    assert found.before_failure.value == pytest.approx((1 + 0.5 + 0 + 0.2) / 4)
    assert found.first_failure.value == pytest.approx((3 + 1 + 2) / 3)
    assert found.first_failure.n == 3
    assert found.failing == {1: 1, 2: 1, 3: 1}
    # Correct up to step k, of the tasks with k steps: 3 of 4, 2 of 4, 1 of 4, 1 of 3 (b1 has no step 4), 0 of 1.
    assert {place: (one.value, one.n) for place, one in found.survival.items()} == {
        1: (0.75, 4),
        2: (0.5, 4),
        3: (0.25, 4),
        4: (pytest.approx(1 / 3), 3),
        5: (0.0, 1),
    }
    assert {value: (one.value, one.n) for value, one in found.by["application"].items()} == {
        "viewer a": (0.5, 2),
        "viewer b": (0.0, 2),
    }
    assert "action" not in found.by  # it differs within a task


def test_a_task_that_lacks_a_step_is_in_no_metric_and_counted() -> None:
    rows, positions = answers(FOUR)
    found = episode_metrics([row for row in rows if row.id != "a1/2"], positions, "step", 100, 1)
    assert (found.n, found.incomplete, found.whole.value) == (3, 1, 0.0)
    last = episode_metrics([row for row in rows if row.id != "a1/4"], positions, "step", 100, 1)
    assert (last.n, last.incomplete) == (3, 1)  # the task has four steps, although three are present and correct


def test_without_tasks_metrics_have_no_value() -> None:
    found = episode_metrics([], {}, "step", 100, 1)
    assert (found.n, found.whole.value, found.first_failure.value, found.survival) == (0, None, None, {})
    assert found.to_dict()["failing"] == {}


def test_correct_tasks_have_no_first_failure() -> None:
    found = episode_metrics(*answers({"a": [1, 1], "b": [1]}), "step", 100, 1)
    assert (found.whole.value, found.before_failure.value, found.first_failure.value) == (1.0, 1.0, None)
    assert found.failing == {}


def test_an_episode_is_one_scored_row() -> None:
    row = ScoredEpisode("a", "patient", 4, 3).scored_answer()
    assert (row.id, row.group, dict(row.scores)) == ("a", "patient", {WHOLE: 0.0, BEFORE_FAILURE: 0.5})


def test_the_interval_resamples_the_groups_of_the_tasks() -> None:
    rows, positions = answers({"a": [1], "b": [0], "c": [1]})
    one = [ScoredAnswer(row.id, "patient", row.scores) for row in rows]
    found = episode_metrics(one, positions, "step", 100, 1).whole
    assert (found.n, found.groups, found.low, found.method) == (3, 1, None, "none")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=8), st.randoms())
def test_the_order_of_rows_makes_no_difference_and_metrics_are_consistent(
    tasks: list[list[bool]], shuffle: random.Random
) -> None:
    rows, positions = answers({f"t{number}": [float(one) for one in values] for number, values in enumerate(tasks)})
    mixed = shuffle.sample(rows, len(rows))
    episodes, _ = find_scored_episodes(mixed, positions, "step")
    assert sorted(episodes, key=lambda episode: episode.name) == sorted(
        find_scored_episodes(rows, positions, "step")[0], key=lambda episode: episode.name
    )
    found = episode_metrics(mixed, positions, "step", 100, 1)
    whole = found.whole.value
    assert whole is not None
    assert math.isclose(whole, sum(all(values) for values in tasks) / len(tasks))
    assert round(whole * found.n) + sum(found.failing.values()) == found.n
    assert found.before_failure.value is not None
    assert found.before_failure.value >= whole - 1e-9
