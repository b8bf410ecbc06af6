"""Rows of GUI steps to samples: the CSV of an earlier step predictor, or columns with other names."""

from collections.abc import Mapping
from random import Random
from typing import Any

from toolkit.data.cells import cell, coordinate_frame, extra_fields, image_size, number_of, read_group, text_of
from toolkit.data.episodes import GAP, REPEATED, Link, link_of
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import RowProblem
from toolkit.tasks.steps.agent_memory import EMPTY, Memory, thin
from toolkit.tasks.steps.reference import Note, memory_after, read_reference
from toolkit.tasks.steps.screenshots import find_screen
from toolkit.tasks.steps.settings import StepSettings

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "task": ("Task_id", "task_id", "task", "episode_id"),
    "image": ("Image_id", "image_id", "image", "image_path", "screenshot"),
    "question": ("Instruction", "instruction", "user_goal", "goal", "question"),
    "output": ("Output", "output"),
    "grounding": ("Grounding", "grounding"),
    "step": ("Step", "step", "step_id", "Step_id"),
    "application": ("Application", "application", "software", "app"),
    "action": ("action",),
    "target": ("target",),
    "coords": ("coords", "coordinates"),
    "bbox": ("bbox",),
    "next_short_term": ("Short Term", "short_term_memory"),
    "next_long_term": ("Long Term", "long_term_memory"),
    "reason": ("Reason",),
    "width": ("width",),
    "height": ("height",),
}

NO_MEMORY = ("tasks.steps.memory_unknown", "the step before must exist and have the agent memory for this step")
AGAIN = ("tasks.steps.step_repeated", "a step of a task must have one row (the first is used)")


def read(name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
    """Return the sample of one row.

    ``fields``: question (the goal), task, place and length (position among the steps of its task, from 1), memory
    (Memory before the step), size (of the screenshot), frame, settings, application, notes. ``reference``: action,
    target, place (a point or box in pixels, or None), box, short_term, long_term, reason, parts, and previous (action,
    target and place of the previous step, or None).

    Raises:
        RowProblem: The task, goal, screenshot or action is missing, JSON or coordinates are invalid, the step is
            repeated, or the memory is unknown and the recipe does not say ``on_gap = "empty"``.
    """
    settings: StepSettings = origin.settings
    where, link = f"{origin.file}: {name}", link_of(row)
    if link.state == REPEATED:
        raise RowProblem(*AGAIN, place=where)
    task, goal = number_of(cell(row, origin, "task")), text_of(cell(row, origin, "question"))
    for text, part, what in ((task, "task", "a task id"), (goal, "goal", "a goal")):
        if not text:
            raise RowProblem(f"tasks.steps.{part}_missing", f"the row must have {what}", place=where)
    image = find_screen(cell(row, origin, "image"), origin, where)
    size = image_size(row, origin, image, where)
    known = read_reference(row, origin, size, where)
    memory, notes = _memory(link, origin, where)
    fields: dict[str, Any] = {
        "question": goal,
        "task": task,
        "place": link.place,
        "length": link.length,
        "memory": _spoiled(memory, settings, name),
        "size": size,
        "frame": coordinate_frame(size, settings.max_side, settings.coordinates),
        "settings": settings,
        "notes": (*known.notes, *notes),
    }
    if application := text_of(cell(row, origin, "application")):
        fields["application"] = application
    fields |= {column: text for column, text in extra_fields(row, origin) if column not in fields}
    reference = {**known.to_dict(), "previous": _action_before(link, origin, size)}
    images = (image,) if "image" in settings.sections else ()
    return Sample(name, "steps", _group(row, origin, task), images, fields, reference)


def _group(row: Mapping[str, Any], origin: RowOrigin, task: str) -> str:
    """Return the task, or the recipe's column. ``order.link`` has checked that the column has whole tasks."""
    return task if origin.group is None else read_group(row, origin, ())


def _memory(link: Link, origin: RowOrigin, where: str) -> tuple[Memory, tuple[Note, ...]]:
    """Return the memory from the previous step. It is empty for the first step.

    Raises:
        RowProblem: The memory is unknown, the prompt shows it, and the recipe has no rule for this case.
    """
    settings: StepSettings = origin.settings
    if link.previous is None and link.state != GAP:
        return EMPTY, ()
    left = None if link.previous is None else memory_after(link.previous, origin)
    if left is not None or not settings.shows_memory:
        return left or EMPTY, ()
    if settings.on_gap == "drop":
        remedy = 'Set data.steps.on_gap to "empty" to prompt such steps with an empty agent memory.'
        raise RowProblem(*NO_MEMORY, place=where, remedy=remedy)
    return EMPTY, (("tasks.steps.memory_shown_empty", "the agent memory is unknown, so the prompt has an empty one"),)


def _spoiled(memory: Memory, settings: StepSettings, name: str) -> Memory:
    """Return the memory for training: sometimes empty or with gaps, drawn by the seed and the row's name."""
    if memory == EMPTY or not (settings.drop_memory or settings.corrupt_memory):
        return memory
    random = Random(f"{settings.seed}/{name}/memory")
    drawn = random.random()
    if drawn < settings.drop_memory:
        return EMPTY
    return thin(memory, random) if drawn < settings.drop_memory + settings.corrupt_memory else memory


def _action_before(link: Link, origin: RowOrigin, size: tuple[int, int]) -> dict[str, Any] | None:
    """Return action, target and coordinates of the previous step, or None if it is missing or unreadable."""
    if link.previous is None:
        return None
    try:
        known = read_reference(link.previous, origin, size, "")
    except RowProblem:
        return None
    return {"action": known.action, "target": known.target, "place": known.place}
