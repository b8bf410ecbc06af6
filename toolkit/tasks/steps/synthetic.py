"""Synthetic GUI tasks as files: one CSV per split with one row per step, and the screens of the rows."""

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toolkit.data.task import Synthetic
from toolkit.recipe import SyntheticData
from toolkit.synthetic import Bytes
from toolkit.synthetic.files import write_csv, write_file
from toolkit.synthetic.gui_viewer import MIN_SIDE, Layout, draw_screen, make_layout
from toolkit.synthetic.gui_widgets import WIDGETS

COMPLETE = "COMPLETE"
"""The last action of every task. It has no coordinates."""
WHOLE_TASK = "task"
"""The target of ``COMPLETE``."""
WORDS = ("nodule", "cyst", "mass", "stone", "clot")
"""Subjects of the goals. The subject is typed into the text field."""


@dataclass(frozen=True, slots=True)
class Workflow:
    """A kind of goal: its wordings, and the widgets that reach it, in order."""

    name: str
    goals: tuple[str, ...]
    """No wording reveals the order."""
    subtasks: tuple[str, ...]


WORKFLOWS = (
    Workflow(
        "measure",
        ("Measure the {word}.", "How large is the {word}?", "Give the diameter of the {word}."),
        ("open", "slice", "zoom", "size", "note"),
    ),
    Workflow(
        "outline",
        ("Outline the {word}.", "Draw the border of the {word}.", "Trace the {word}."),
        ("slice", "mask", "zoom", "save", "note"),
    ),
    Workflow("name", ("Name the {word}.", "Label the {word}.", "Tag the {word}."), ("zoom", "note", "save")),
    Workflow(
        "report",
        ("Report the {word}.", "Write up the {word}.", "Inform the ward of the {word}."),
        ("open", "tone", "slice", "zoom", "send"),
    ),
    Workflow(
        "study",
        ("Study the {word} in full.", "Work up the {word}.", "Give all details of the {word}."),
        ("slice", "tone", "mask", "size", "zoom", "send", "note"),
    ),
    Workflow(
        "volume",
        ("Find the volume of the {word}.", "How much space has the {word}?", "Give the millilitres of the {word}."),
        ("mask", "size", "slice", "save"),
    ),
    Workflow(
        "follow",
        ("Follow up the {word}.", "Has the {word} grown?", "Compare the {word} with last year."),
        ("open", "zoom", "mask", "slice", "save", "note"),
    ),
    Workflow(
        "consult",
        ("Consult a colleague on the {word}.", "Get a second opinion on the {word}.", "Discuss the {word}."),
        ("tone", "note", "slice", "send", "mask"),
    ),
)
"""The successor of a subtask depends on the workflow. No workflow repeats a subtask."""


@dataclass(frozen=True, slots=True)
class GuiStep:
    """The correct action at one point of a task."""

    number: int
    """From 1."""
    subtask: str
    """Name of the widget, or empty for ``COMPLETE``."""
    action: str
    target: str
    """Name of the widget, followed by the typed word if any."""


@dataclass(frozen=True, slots=True)
class GuiTask:
    """One goal in one layout, and the steps that reach it."""

    id: str
    goal: str
    application: str
    workflow: Workflow
    word: str
    steps: tuple[GuiStep, ...]
    layout: Layout


def make_gui_task(seed: int, index: int) -> GuiTask:
    """Return the task with this number. Deterministic on every machine."""
    rng = np.random.default_rng([seed, index])
    workflow = WORKFLOWS[rng.integers(len(WORKFLOWS))]
    word = WORDS[rng.integers(len(WORDS))]
    goal = workflow.goals[rng.integers(len(workflow.goals))].format(word=word)
    layout = make_layout(rng)
    return GuiTask(f"task{index:06d}", goal, layout.application, workflow, word, _steps(workflow, word), layout)


def _steps(workflow: Workflow, word: str) -> tuple[GuiStep, ...]:
    steps = [_step(number, name, word) for number, name in enumerate(workflow.subtasks, 1)]
    return (*steps, GuiStep(len(steps) + 1, "", COMPLETE, WHOLE_TASK))


def _step(number: int, name: str, word: str) -> GuiStep:
    action = WIDGETS[name].action
    return GuiStep(number, name, action, f"{name} {word}" if action == "TEXT" else name)


def agent_memory_after(task: GuiTask, step: GuiStep) -> Mapping[str, Any]:
    """Return the agent memory after this step, by ``Short Term`` and ``Long Term``."""
    subtasks = task.workflow.subtasks
    done = min(step.number, len(subtasks))
    return {
        "Short Term": {
            "last_action": f"{step.action} {step.target}",
            "last_observation": "done",
            "last_lesson": "",
        },
        "Long Term": {
            "overall_progress": f"{done} of {len(subtasks)}",
            "completed_subtasks": list(subtasks[:done]),
            "remaining_subtasks": list(subtasks[done:]),
            "known_pitfalls": [],
            "recurring_issues": [],
        },
    }


def explanation(task: GuiTask, step: GuiStep) -> str:
    """Return the reason for this step, as a sentence."""
    if step.number == 1:
        return f"{step.subtask} comes first."
    before = task.steps[step.number - 2].subtask
    return f"{before} is done, {step.subtask} is next." if step.subtask else f"{before} is done, all is done."


def widget_box(task: GuiTask, step: GuiStep, size: int) -> tuple[int, int, int, int] | None:
    """Return the box of the step's widget on a screen of this side, x2 and y2 exclusive, or None for ``COMPLETE``."""
    return task.layout.boxes[step.subtask].pixels(size) if step.subtask else None


def reference_answer(task: GuiTask, step: GuiStep, size: int) -> dict[str, Any]:
    """Return the correct answer at this step: the agent memory after it, the reason, and the action with its pixel."""
    box = widget_box(task, step, size)
    coords = [(box[0] + box[2]) // 2, (box[1] + box[3]) // 2] if box else None
    predicted = {"action": step.action, "target": step.target, "coords": coords}
    return {
        **agent_memory_after(task, step),
        "Reason": explanation(task, step),
        "Predicted": {"predicted_action": predicted},
    }


def write_steps(folder: Path, synthetic: SyntheticData, seed: int) -> dict[str, Path]:
    """Write synthetic GUI tasks, and return the CSV file of each split that has rows.

    ``folder`` gets ``train.csv``, ``validation.csv``, ``test.csv`` and ``screens/*.png`` (square, ``synthetic.size``
    pixels per side). A split has whole tasks, enough to reach the requested rows, so it can have up to seven more. A
    second call writes the same bytes. No task is in two splits. Each CSV is written last and atomically.
    """
    counts = {"train": synthetic.train, "validation": synthetic.validation, "test": synthetic.test}
    (folder / "screens").mkdir(parents=True, exist_ok=True)
    files, first = {}, 0
    for split, rows in counts.items():
        tasks = list(_tasks(seed, first, rows))
        if tasks:
            files[split] = _write_split(folder, f"{split}.csv", tasks, (synthetic.size, seed))
        first += len(tasks)
    return files


def _tasks(seed: int, first: int, rows: int) -> Iterator[tuple[int, GuiTask]]:
    """Yield numbers and tasks from ``first`` on, until their steps reach ``rows``."""
    index = first
    while rows > 0:
        task = make_gui_task(seed, index)
        yield index, task
        rows -= len(task.steps)
        index += 1


def _write_split(folder: Path, name: str, tasks: list[tuple[int, GuiTask]], shape: tuple[int, int]) -> Path:
    size, seed = shape

    def draw(numbered: tuple[int, GuiTask]) -> list[dict[str, str]]:
        index, task = numbered
        for step in task.steps:
            # Each screen has its own generator, so that it does not depend on the progress.
            rng = np.random.default_rng([seed, index, step.number])
            _write_screen(folder / screen_name(task, step), draw_screen(task.layout, size, rng))
        return rows_of(task, size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return write_csv(folder / name, [row for made in pool.map(draw, tasks) for row in made])


def _write_screen(path: Path, screen: Bytes) -> None:
    encoded = BytesIO()
    Image.fromarray(screen).save(encoded, "PNG", compress_level=1)
    write_file(path, encoded.getvalue())


def rows_of(task: GuiTask, size: int) -> list[dict[str, str]]:
    """Return the rows of a task in the order of its steps. Boxes and coordinates are pixels of screens of this side."""
    return [
        {
            "Task_id": task.id,
            "Image_id": screen_name(task, step),
            "Instruction": task.goal,
            "Output": _compact(reference_answer(task, step, size)),
            "Grounding": _compact({"ground_truth": _ground_truth(task, step, size)}),
            "Application": task.application,
        }
        for step in task.steps
    ]


def screen_name(task: GuiTask, step: GuiStep) -> str:
    """Return the screen's file, relative to the folder of the rows."""
    return f"screens/{task.id}_{step.number}.png"


def _ground_truth(task: GuiTask, step: GuiStep, size: int) -> dict[str, Any]:
    original = {
        "step": step.number,
        "action": step.action,
        "target": step.target,
        "screenshot": screen_name(task, step),
        "note": WIDGETS[step.subtask].look if step.subtask else "nothing is left to do",
        "bbox": widget_box(task, step, size),
    }
    return {"action": step.action, "target": step.target, "original_step_data": original}


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


STEP_ROWS = Synthetic(
    kind="steps",
    description="tasks in an image viewer, step by step",
    write=write_steps,
    columns=frozenset({"Task_id", "Image_id", "Instruction", "Output", "Grounding", "Application"}),
    min_size=MIN_SIDE,
    content="screens",
)
