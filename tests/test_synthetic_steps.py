"""Synthetic GUI tasks: rows, screens without progress, and agent memory that has the progress."""

import csv
import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.problems import raises
from tests.tiny_training.screens import agent_memory_before
from toolkit.errors import DataError
from toolkit.recipe import SyntheticData
from toolkit.synthetic.gui_viewer import APPLICATIONS, MIN_SIDE, draw_screen, make_layout
from toolkit.synthetic.gui_widgets import ICONS, WIDGETS
from toolkit.tasks import TASKS
from toolkit.tasks.steps.synthetic import (
    WORDS,
    WORKFLOWS,
    GuiTask,
    agent_memory_after,
    make_gui_task,
    reference_answer,
    rows_of,
    widget_box,
    write_steps,
)

SPLITS = ("train", "validation", "test")
REQUESTED = {"train": 60, "validation": 9, "test": 30}
SIZE = 160
ACTIONS = {"CLICK", "SCROLL", "ZOOM", "SEGMENT", "TEXT", "COMPLETE"}

Row = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("steps")
    write_steps(made, SyntheticData(kind="steps", size=SIZE, **REQUESTED), seed=5)
    return made


@pytest.fixture(scope="module")
def tasks() -> list[GuiTask]:
    return [make_gui_task(11, index) for index in range(400)]


def table(folder: Path, split: str) -> list[Row]:
    with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    for row in rows:
        row["Output"], row["Grounding"] = json.loads(row["Output"]), json.loads(row["Grounding"])
    return rows


def by_task(folder: Path) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for split in SPLITS:
        for row in table(folder, split):
            groups[row["Task_id"]].append(row)
    return groups


def truth(row: Row) -> Row:
    made: Row = row["Grounding"]["ground_truth"]
    return made


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}


def test_rows_have_the_columns_of_the_task(folder: Path) -> None:
    for row in table(folder, "train"):
        assert list(row) == ["Task_id", "Image_id", "Instruction", "Output", "Grounding", "Application"]
        output = row["Output"]
        assert list(output) == ["Short Term", "Long Term", "Reason", "Predicted"]
        assert list(output["Short Term"]) == ["last_action", "last_observation", "last_lesson"]
        assert list(output["Long Term"]) == [
            "overall_progress",
            "completed_subtasks",
            "remaining_subtasks",
            "known_pitfalls",
            "recurring_issues",
        ]
        assert list(output["Predicted"]["predicted_action"]) == ["action", "target", "coords"]
        assert list(truth(row)) == ["action", "target", "original_step_data"]
        assert list(truth(row)["original_step_data"]) == ["step", "action", "target", "screenshot", "note", "bbox"]
        assert row["Application"] in APPLICATIONS
        assert truth(row)["action"] in ACTIONS


def test_prediction_and_ground_truth_agree(folder: Path) -> None:
    for rows in by_task(folder).values():
        for row in rows:
            right, original = truth(row), truth(row)["original_step_data"]
            predicted = row["Output"]["Predicted"]["predicted_action"]
            assert predicted["action"] == right["action"] == original["action"]
            assert predicted["target"] == right["target"] == original["target"]
            assert original["screenshot"] == row["Image_id"]


def test_a_task_is_complete_ordered_and_ends_once(folder: Path) -> None:
    for rows in by_task(folder).values():
        assert 4 <= len(rows) <= 8
        assert [truth(row)["original_step_data"]["step"] for row in rows] == list(range(1, len(rows) + 1))
        assert [truth(row)["action"] == "COMPLETE" for row in rows] == [False] * (len(rows) - 1) + [True]
        assert len({(row["Instruction"], row["Application"]) for row in rows}) == 1


def test_splits_have_whole_tasks_and_at_least_the_requested_rows(folder: Path) -> None:
    names = {split: {row["Task_id"] for row in table(folder, split)} for split in SPLITS}
    assert sum(map(len, names.values())) == len(set().union(*names.values()))
    for split, requested in REQUESTED.items():
        # A task has 8 steps at most, and the last one is begun because a row is missing.
        assert requested <= len(table(folder, split)) <= requested + 7


def test_every_row_has_its_own_screen(folder: Path) -> None:
    named = [row["Image_id"] for rows in by_task(folder).values() for row in rows]
    written = digests(folder / "screens")
    assert sorted(named) == sorted(f"screens/{name}" for name in written)
    assert len(set(written.values())) == len(written)
    for name in named[:5]:
        with Image.open(folder / name) as screen:
            assert (screen.size, screen.mode) == ((SIZE, SIZE), "RGB")


def test_files_depend_only_on_the_seed(tmp_path: Path) -> None:
    wanted = SyntheticData(kind="steps", train=12, test=5, size=112)
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        files = write_steps(tmp_path / name, wanted, seed)
        assert {split: path.name for split, path in files.items()} == {"train": "train.csv", "test": "test.csv"}
        write_steps(tmp_path / name, wanted, seed)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one")["train.csv"] != digests(tmp_path / "three")["train.csv"]


def test_agent_memory_has_the_completed_subtasks(folder: Path) -> None:
    for rows in by_task(folder).values():
        widgets = [truth(row)["target"].split()[0] for row in rows[:-1]]
        for done, row in enumerate(rows, 1):
            short, long = row["Output"]["Short Term"], row["Output"]["Long Term"]
            assert short["last_action"] == f"{truth(row)['action']} {truth(row)['target']}"
            # The last step, COMPLETE, is no subtask.
            assert long["completed_subtasks"] == widgets[:done]
            assert long["remaining_subtasks"] == widgets[done:]
            assert long["overall_progress"] == f"{min(done, len(widgets))} of {len(widgets)}"


def test_a_gui_step_gets_the_agent_memory_of_the_previous_step(tasks: list[GuiTask]) -> None:
    for task in tasks[:30]:
        assert agent_memory_before(task, task.steps[0]) == {"Short Term": {}, "Long Term": {}}
        for before, step in zip(task.steps, task.steps[1:], strict=False):
            assert agent_memory_before(task, step) == agent_memory_after(task, before)
            assert agent_memory_before(task, step).items() <= reference_answer(task, before, 224).items()


def nexts(tasks: list[GuiTask], known: Any) -> dict[str, set[tuple[str, str]]]:
    """Return known facts at a GUI step -> the correct (action, target) pairs."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for task in tasks:
        for step in task.steps:
            found[json.dumps(known(task, step))].add((step.action, step.target))
    return found


def test_goal_and_agent_memory_determine_the_next_step(tasks: list[GuiTask]) -> None:
    both = nexts(tasks, lambda task, step: [task.goal, agent_memory_before(task, step)])
    assert all(len(right) == 1 for right in both.values())
    # The list of completed subtasks is enough beside the goal.
    done = nexts(
        tasks, lambda task, step: [task.goal, agent_memory_before(task, step)["Long Term"].get("completed_subtasks")]
    )
    assert all(len(right) == 1 for right in done.values())


def test_the_goal_alone_never_determines_the_next_step(tasks: list[GuiTask]) -> None:
    assert all(len(right) >= 4 for right in nexts(tasks, lambda task, step: task.goal).values())
    # The best guess is right once a task, so in 1 of 6 steps on average: 400 tasks of 4 to 8 steps.
    assert sum(len(task.steps) for task in tasks) / len(tasks) == pytest.approx(6, abs=0.2)


def test_agent_memory_alone_does_not_determine_the_next_step(tasks: list[GuiTask]) -> None:
    memory = nexts(tasks, lambda task, step: agent_memory_before(task, step))
    # At the first step it is empty, and before a word is typed it does not hold the word.
    assert len(memory[json.dumps({"Short Term": {}, "Long Term": {}})]) == 5
    assert max(len(right) for right in memory.values()) == len(WORDS)
    last = nexts(
        tasks, lambda task, step: agent_memory_before(task, step)["Short Term"].get("last_action", "").split()[:2]
    )
    assert sum(len(right) > 1 for right in last.values()) >= 0.7 * len(last)


def test_no_action_dominates(tasks: list[GuiTask]) -> None:
    counts = Counter(step.action for task in tasks for step in task.steps)
    assert counts.keys() == ACTIONS
    assert max(counts.values()) / counts.total() < 0.4
    assert min(counts.values()) / counts.total() > 0.08


def test_workflows_have_common_subtasks_and_each_goal_has_one_workflow() -> None:
    goals = [goal for workflow in WORKFLOWS for goal in workflow.goals]
    assert len(goals) == len(set(goals)) == 3 * len(WORKFLOWS)
    assert all("{word}" in goal for goal in goals)
    assert WIDGETS.keys() == ICONS.keys() == {name for workflow in WORKFLOWS for name in workflow.subtasks}
    for workflow in WORKFLOWS:
        assert len(set(workflow.subtasks)) == len(workflow.subtasks)
    followers = defaultdict(set)
    for workflow in WORKFLOWS:
        for name, follower in zip(workflow.subtasks, (*workflow.subtasks[1:], ""), strict=True):
            followers[name].add(follower)
    assert all(len(found) >= 2 for found in followers.values())


def test_texts_are_short(tasks: list[GuiTask]) -> None:
    # Keys and punctuation alone take 276 characters.
    lengths = [len(row["Output"]) for task in tasks for row in rows_of(task, 224)]
    assert max(lengths) <= 410
    assert all(len(task.goal) <= 40 for task in tasks)


@given(seed=st.integers(0, 2**31), size=st.integers(MIN_SIDE, 512))
def test_widgets_are_large_disjoint_and_on_the_screen(seed: int, size: int) -> None:
    layout = make_layout(np.random.default_rng(seed))
    assert layout.boxes.keys() == WIDGETS.keys()
    taken = np.zeros((size, size), int)
    for name, box in layout.boxes.items():
        assert 0 <= box.x1 < box.x2 <= 1, name
        assert 0 <= box.y1 < box.y2 <= 1, name
        assert box.x2 - box.x1 >= 1 / 6, name
        assert box.y2 - box.y1 >= 1 / 9, name
        x1, y1, x2, y2 = box.pixels(size)
        taken[y1:y2, x1:x2] += 1
    x1, y1, x2, y2 = layout.pane.pixels(size)
    assert min(x2 - x1, y2 - y1) >= 0.3 * size
    taken[y1:y2, x1:x2] += 1
    assert taken.max() == 1


@pytest.mark.parametrize("size", [112, 224, 256])
def test_coordinates_are_inside_their_box(tasks: list[GuiTask], size: int) -> None:
    for task in tasks[:100]:
        for step in task.steps:
            box, coords = (
                widget_box(task, step, size),
                reference_answer(task, step, size)["Predicted"]["predicted_action"]["coords"],
            )
            if step.action == "COMPLETE":
                assert box is None
                assert coords is None
                continue
            assert box is not None
            (x1, y1, x2, y2), (x, y) = box, coords
            assert 0 <= x1 <= x < x2 <= size
            assert 0 <= y1 <= y < y2 <= size


def test_boxes_in_the_files_match_the_widgets(folder: Path) -> None:
    """A widget's colour fills the box of its row and occurs nowhere else."""
    for rows in by_task(folder).values():
        for row in rows[:-1]:
            x1, y1, x2, y2 = truth(row)["original_step_data"]["bbox"]
            with Image.open(folder / row["Image_id"]) as screen:
                same = np.all(np.asarray(screen) == WIDGETS[truth(row)["target"].split()[0]].colour, axis=-1)
            inside = same[y1:y2, x1:x2]
            assert inside.mean() > 0.4
            # Names and icons in white on other widgets are as white as the field: most of it is in the field.
            assert inside.sum() > (0.5 if truth(row)["action"] == "TEXT" else 0.999) * same.sum()


def test_widget_colours_are_distinct_at_the_input_size_of_a_small_model(tasks: list[GuiTask]) -> None:
    """At 112 pixels, the mean colour of a widget's centre is nearest to its own of the nine colours."""
    names = list(WIDGETS)
    colours = np.array([WIDGETS[name].colour for name in names], float)
    for task in tasks[:60]:
        screen = Image.fromarray(draw_screen(task.layout, 224, np.random.default_rng(0)))
        small = np.asarray(screen.resize((112, 112), Image.Resampling.BOX), float)
        for name, box in task.layout.boxes.items():
            x1, y1, x2, y2 = box.pixels(112)
            # The median: name and icon cover less than half.
            seen = np.median(small[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1], axis=(0, 1))
            assert names[int(np.linalg.norm(colours - seen, axis=1).argmin())] == name


def test_layouts_differ_between_tasks(tasks: list[GuiTask]) -> None:
    assert {task.application for task in tasks} == set(APPLICATIONS)
    for name in WIDGETS:
        centres = np.array([task.layout.boxes[name].centre for task in tasks])
        # The best guess without looking is a constant, and it misses by a quarter of the side or more on average.
        misses = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
        assert misses.mean() > 0.2, name


def test_the_screen_shows_nothing_of_the_progress(tasks: list[GuiTask], folder: Path) -> None:
    """Screens of one task differ only in the slice and the slider's knob."""
    for seed in (1, 2):
        one, two = (draw_screen(tasks[0].layout, 224, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(one, two)
    for index in range(3):
        task = make_gui_task(5, index)
        free = np.ones((SIZE, SIZE), bool)
        for box in (task.layout.pane, task.layout.boxes["slice"]):
            x1, y1, x2, y2 = box.pixels(SIZE)
            free[y1:y2, x1:x2] = False
        screens = [np.asarray(Image.open(folder / "screens" / f"{task.id}_{step.number}.png")) for step in task.steps]
        assert all(np.array_equal(screen[free], screens[0][free]) for screen in screens)
        assert not np.array_equal(screens[0], screens[1])


@given(seed=st.integers(0, 2**31), size=st.integers(MIN_SIDE, 400))
def test_screens_of_any_valid_size_are_drawn(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    screen = draw_screen(make_layout(rng), size, rng)
    assert screen.shape == (size, size, 3)
    assert screen.dtype == np.uint8


def test_too_small_screens_are_rejected(tmp_path: Path) -> None:
    synthetic = TASKS["steps"].synthetic
    assert synthetic is not None
    assert synthetic.min_size == MIN_SIDE
    with raises(DataError, "synthetic.size_too_small") as caught:
        write_steps(tmp_path, SyntheticData(kind="steps", train=4, test=4, size=111), seed=1)
    assert (caught.problem.place, caught.problem.value) == ("size", 111)
    assert not (tmp_path / "train.csv").exists()
