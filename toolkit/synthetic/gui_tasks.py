"""Practice tasks in a viewer: a goal, four to eight steps, and the memory that says which of them are done."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.synthetic.gui_layouts import Layout, make_layout
from toolkit.synthetic.gui_widgets import WIDGETS

COMPLETE = "COMPLETE"
"""The last action of every task; it has no place on the screen."""
WHOLE_TASK = "task"
"""The target of ``COMPLETE``."""
WORDS = ("nodule", "cyst", "mass", "stone", "clot")
"""What a goal is about, and what is typed into the field."""


@dataclass(frozen=True, slots=True)
class Workflow:
    """A kind of goal: how it is put, and the widgets that reach it one after the other."""

    name: str
    goals: tuple[str, ...]
    """None of them tells the order."""
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
        ("Report the {word}.", "Write up the {word}.", "Tell the ward of the {word}."),
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
        "ask",
        ("Ask a colleague about the {word}.", "Get a second opinion on the {word}.", "Discuss the {word}."),
        ("tone", "note", "slice", "send", "mask"),
    ),
)
"""What follows a subtask depends on the workflow, and in no workflow does a subtask come twice."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is right at one point of a task."""

    number: int
    """From 1."""
    subtask: str
    """The widget's name; empty for ``COMPLETE``."""
    action: str
    target: str
    """The widget's name, with the word behind it where one is typed."""


@dataclass(frozen=True, slots=True)
class Task:
    """One goal in one layout, and the steps that reach it."""

    id: str
    goal: str
    application: str
    workflow: Workflow
    word: str
    steps: tuple[Step, ...]
    layout: Layout


def make_task(seed: int, index: int) -> Task:
    """The task with this number; the same on every machine."""
    rng = np.random.default_rng([seed, index])
    workflow = WORKFLOWS[rng.integers(len(WORKFLOWS))]
    word = WORDS[rng.integers(len(WORDS))]
    goal = workflow.goals[rng.integers(len(workflow.goals))].format(word=word)
    layout = make_layout(rng)
    return Task(f"task{index:06d}", goal, layout.application, workflow, word, _steps(workflow, word), layout)


def _steps(workflow: Workflow, word: str) -> tuple[Step, ...]:
    steps = [_step(number, name, word) for number, name in enumerate(workflow.subtasks, 1)]
    return (*steps, Step(len(steps) + 1, "", COMPLETE, WHOLE_TASK))


def _step(number: int, name: str, word: str) -> Step:
    action = WIDGETS[name].action
    return Step(number, name, action, f"{name} {word}" if action == "TEXT" else name)


def memory_before(task: Task, step: Step) -> Mapping[str, Any]:
    """What the model is given at this step: the memory after the step before, by ``Short Term`` and ``Long Term``.

    Both are empty at the first step.
    """
    if step.number == 1:
        return {"Short Term": {}, "Long Term": {}}
    return memory_after(task, task.steps[step.number - 2])


def memory_after(task: Task, step: Step) -> Mapping[str, Any]:
    """What there is to remember once this step is done, by ``Short Term`` and ``Long Term``."""
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


def reason(task: Task, step: Step) -> str:
    """Why this step, in a sentence."""
    if step.number == 1:
        return f"{step.subtask} comes first."
    before = task.steps[step.number - 2].subtask
    return f"{before} is done, {step.subtask} is next." if step.subtask else f"{before} is done, all is done."


def place(task: Task, step: Step, size: int) -> tuple[int, int, int, int] | None:
    """The box of the step's widget on a screen of this side, x2 and y2 exclusive; None: the action has no place."""
    return task.layout.boxes[step.subtask].pixels(size) if step.subtask else None


def answer(task: Task, step: Step, size: int) -> dict[str, Any]:
    """The right answer at this step: the memory as it is after it, the reason, and the action with its pixel."""
    box = place(task, step, size)
    coords = [(box[0] + box[2]) // 2, (box[1] + box[3]) // 2] if box else None
    predicted = {"action": step.action, "target": step.target, "coords": coords}
    return {
        **memory_after(task, step),
        "Reason": reason(task, step),
        "Predicted": {"predicted_action": predicted},
    }
