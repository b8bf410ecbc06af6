"""Turns about GUI screens: where a widget is, which one is next, and single parts of an answer's JSON."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tests.tiny_training.turns import Example, ImageLabels, QuestionAnswer, one_of, weighted
from toolkit.synthetic import Rng
from toolkit.synthetic.gui_viewer import draw_screen
from toolkit.synthetic.gui_widgets import WIDGETS
from toolkit.tasks.steps.synthetic import GuiStep, GuiTask, agent_memory_after, make_gui_task, reference_answer

SIDE = 224
"""Pixels per side of a drawn screen."""
HUNDRED = 100
"""Upper end of the tiny model's coordinates."""


def draw(seed: int, number: int) -> Example:
    """Return a screen, its turns and its labels."""
    task = make_gui_task(seed, number)
    pixels = draw_screen(task.layout, SIDE, np.random.default_rng([seed, number]))
    edges = tuple(float(edge) for name in WIDGETS for edge in task.layout.boxes[name])
    return Example(pixels, partial(make_turn, task), ImageLabels(numbers=edges))


def make_turn(task: GuiTask, rng: Rng) -> QuestionAnswer:
    """Return a turn about this screen. Its kind is drawn by weight."""
    return weighted(_KINDS, rng)(task, rng)


def agent_memory_before(task: GuiTask, step: GuiStep) -> Mapping[str, Any]:
    """Return the agent memory that the model gets at this step: that after the previous step, empty at the first."""
    if step.number == 1:
        return {"Short Term": {}, "Long Term": {}}
    return agent_memory_after(task, task.steps[step.number - 2])


def texts(seed: int, number: int, rng: Rng) -> tuple[str, ...]:
    """Return the texts of a turn and of a whole answer, for the tokenizer."""
    task = make_gui_task(seed, number)
    step = _step(task, rng)
    return *make_turn(task, rng), _compact(agent_memory_before(task, step)), _compact(_answer(task, step))


def _where(task: GuiTask, rng: Rng) -> QuestionAnswer:
    name = _widget(rng)
    return QuestionAnswer(f"Where is {name}?", _compact(_middle(task, name)))


def _box(task: GuiTask, rng: Rng) -> QuestionAnswer:
    name = _widget(rng)
    return QuestionAnswer(f"Box of {name}:", _compact([round(HUNDRED * edge) for edge in task.layout.boxes[name]]))


def _what(task: GuiTask, rng: Rng) -> QuestionAnswer:
    name = _widget(rng)
    return QuestionAnswer(f"What is at {_compact(_middle(task, name))}?", name)


def _next(task: GuiTask, rng: Rng) -> QuestionAnswer:
    step = _step(task, rng)
    return QuestionAnswer(f"{task.goal}\n{_progress(task, step)}\nNext:", f"{step.action} {step.target}")


def _action(task: GuiTask, rng: Rng) -> QuestionAnswer:
    step = _step(task, rng)
    part = {"Predicted": _answer(task, step)["Predicted"]}
    return QuestionAnswer(f'{step.action} {step.target}\nWrite "Predicted".', _compact(part))


def _short_term(task: GuiTask, rng: Rng) -> QuestionAnswer:
    step = _step(task, rng)
    part = {"Short Term": _answer(task, step)["Short Term"]}
    return QuestionAnswer(f'{step.action} {step.target}\nWrite "Short Term".', _compact(part))


def _long_term(task: GuiTask, rng: Rng) -> QuestionAnswer:
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


def _step(task: GuiTask, rng: Rng) -> GuiStep:
    return task.steps[int(rng.integers(len(task.steps)))]


def _progress(task: GuiTask, step: GuiStep) -> str:
    """Return in words which subtasks were done before a GUI step and which remained."""
    memory = agent_memory_before(task, step)["Long Term"]
    if not memory:
        return "Nothing is done."
    done, left = (", ".join(memory[part]) or "nothing" for part in ("completed_subtasks", "remaining_subtasks"))
    return f"Done: {done}. To do: {left}."


def _answer(task: GuiTask, step: GuiStep) -> Mapping[str, Any]:
    """Return the reference answer with coordinates in the tiny model's convention."""
    whole = reference_answer(task, step, SIDE)
    action = whole["Predicted"]["predicted_action"]
    coords = None if action["coords"] is None else _middle(task, step.subtask)
    return {**whole, "Predicted": {"predicted_action": {**action, "coords": coords}}}


def _middle(task: GuiTask, name: str) -> list[int]:
    return [round(HUNDRED * fraction) for fraction in task.layout.boxes[name].centre]


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
