"""Lessons about screens: where a widget is, which one comes next, and each part of an answer's JSON alone."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from toolkit.synthetic.gui_tasks import Step, Task, answer, make_task, memory_before
from toolkit.synthetic.gui_viewer import draw_screen
from toolkit.synthetic.gui_widgets import WIDGETS
from toolkit.synthetic.radiograph import Rng
from toolkit.tiny.curriculum.base import Drawing, ImageLabels, QuestionAnswer, one_of, weighted

SIDE = 224
"""Screens are drawn with so many pixels a side."""
HUNDRED = 100
"""The tiny model's coordinates run from 0 to it."""


def draw(seed: int, number: int) -> Drawing:
    """A screen, and who asks about it."""
    task = make_task(seed, number)
    pixels = draw_screen(task.layout, SIDE, np.random.default_rng([seed, number]))
    edges = tuple(float(edge) for name in WIDGETS for edge in task.layout.boxes[name])
    return Drawing(pixels, partial(lesson, task), ImageLabels(numbers=edges))


def lesson(task: Task, rng: Rng) -> QuestionAnswer:
    """A lesson about this screen, of a kind drawn by weight."""
    return weighted(_KINDS, rng)(task, rng)


def texts(seed: int, number: int, rng: Rng) -> tuple[str, ...]:
    """Whole answers to a task's steps and what lessons on it say, for the tokenizer."""
    task = make_task(seed, number)
    step = _step(task, rng)
    return *lesson(task, rng), _compact(memory_before(task, step)), _compact(_answer(task, step))


def _where(task: Task, rng: Rng) -> QuestionAnswer:
    name = _widget(rng)
    return QuestionAnswer(f"Where is {name}?", _compact(_middle(task, name)))


def _box(task: Task, rng: Rng) -> QuestionAnswer:
    name = _widget(rng)
    return QuestionAnswer(f"Box of {name}:", _compact([round(HUNDRED * edge) for edge in task.layout.boxes[name]]))


def _what(task: Task, rng: Rng) -> QuestionAnswer:
    name = _widget(rng)
    return QuestionAnswer(f"What is at {_compact(_middle(task, name))}?", name)


def _next(task: Task, rng: Rng) -> QuestionAnswer:
    step = _step(task, rng)
    return QuestionAnswer(f"{task.goal}\n{_progress(task, step)}\nNext:", f"{step.action} {step.target}")


def _action(task: Task, rng: Rng) -> QuestionAnswer:
    step = _step(task, rng)
    part = {"Predicted": _answer(task, step)["Predicted"]}
    return QuestionAnswer(f'{step.action} {step.target}\nWrite "Predicted".', _compact(part))


def _short_term(task: Task, rng: Rng) -> QuestionAnswer:
    step = _step(task, rng)
    part = {"Short Term": _answer(task, step)["Short Term"]}
    return QuestionAnswer(f'{step.action} {step.target}\nWrite "Short Term".', _compact(part))


def _long_term(task: Task, rng: Rng) -> QuestionAnswer:
    step = _step(task, rng)
    part = {"Long Term": _answer(task, step)["Long Term"]}
    return QuestionAnswer(f'{task.goal}\n{_progress(task, step)}\nWrite the next "Long Term".', _compact(part))


_KINDS = (
    (_where, 0.3),
    (_what, 0.1),
    (_box, 0.05),
    (_next, 0.15),
    (_action, 0.15),
    (_short_term, 0.05),
    (_long_term, 0.2),
)


def _widget(rng: Rng) -> str:
    return one_of(tuple(WIDGETS), rng)


def _step(task: Task, rng: Rng) -> Step:
    return task.steps[int(rng.integers(len(task.steps)))]


def _progress(task: Task, step: Step) -> str:
    """What was done before a step and what was left to do, in words."""
    memory = memory_before(task, step)["Long Term"]
    if not memory:
        return "Nothing is done."
    done, left = (", ".join(memory[part]) or "nothing" for part in ("completed_subtasks", "remaining_subtasks"))
    return f"Done: {done}. To do: {left}."


def _answer(task: Task, step: Step) -> Mapping[str, Any]:
    """The right answer, with its place as the tiny model writes it."""
    whole = answer(task, step, SIDE)
    action = whole["Predicted"]["predicted_action"]
    place = None if action["coords"] is None else _middle(task, step.subtask)
    return {**whole, "Predicted": {"predicted_action": {**action, "coords": place}}}


def _middle(task: Task, name: str) -> list[int]:
    return [round(HUNDRED * share) for share in task.layout.boxes[name].centre]


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
