"""Rows and settings of the task ``steps``.

Rows are the CSV of an earlier step predictor, or have columns with other names. The screenshot of a row is a path below
the image root, or the id of an image there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

from pydantic import Field

from toolkit.data.cells import IMAGE_OUTSIDE, NO_IMAGE, cell, extra_fields, fold, name_of, number_of, text_of
from toolkit.data.episodes import GAP, REPEATED, Link, link_of
from toolkit.data.groups import read_group
from toolkit.data.image_sizes import coordinate_frame, image_size
from toolkit.data.row_images import named_image
from toolkit.data.sample import Sample
from toolkit.data.task import Found, RowOrigin
from toolkit.errors import ImageError, MissingImage, Problem, RowProblem
from toolkit.images import ImagePolicy, names
from toolkit.images.ref import ImageRef
from toolkit.recipe import Recipe, Section
from toolkit.recipe.data_checks import empty_or_repeated
from toolkit.scoring.regions import (
    BOX_FORMATS,
    COORDINATES,
    XYXY,
    BoxFormat,
    Coordinates,
    CoordinatesKey,
    choose_coordinates,
)
from toolkit.tasks.steps.agent_memory import EMPTY, AgentMemory, thin
from toolkit.tasks.steps.reference import Note, agent_memory_after, read_reference

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

SCREENSHOT_MISSING = ("tasks.steps.screenshot_missing", "an image with this id must exist in data.image_root")

SCREENSHOT_AMBIGUOUS = ("tasks.steps.screenshot_ambiguous", "only one image in data.image_root must have this id")

MEMORY_UNKNOWN = ("tasks.steps.memory_unknown", "the step before must exist and have the agent memory for this step")

STEP_REPEATED = ("tasks.steps.step_repeated", "a step of a task must have one row (the first is used)")


FEWEST_POINTS = 20
"""Fewest coordinates whose extent says something about their convention."""


class Steps(Section):
    """Settings of the task ``steps``: the prompt, the answer, and the tasks to train on."""

    sections: tuple[Literal["goal", "image", "short_term", "long_term"], ...] = (
        "goal",
        "image",
        "short_term",
        "long_term",
    )
    """Parts of the prompt. Without ``image`` the rows have no image. ``prompt.instruction`` is the last part."""
    answer: tuple[Literal["short_term", "long_term", "reason", "predicted"], ...] = (
        "short_term",
        "long_term",
        "reason",
        "predicted",
    )
    """Parts of an answer, in the order of the row."""
    actions: tuple[str, ...] = ("CLICK", "SCROLL", "ZOOM", "SEGMENT", "TEXT", "COMPLETE")
    """Allowed actions. Rows with another action are unusable."""
    gestures: tuple[str, ...] = ("SCROLL",)
    """Actions whose coordinates can be four numbers for a start and an end point, in this order. Four numbers of any
    other action are a box."""
    coordinates: CoordinatesKey = "auto"
    """Convention for coordinates in completions. ``auto`` is that of the model family. thousand_yx has y first.
    locations are the tokens of PaliGemma."""
    places: Literal["pixels", "thousand", "hundred", "unit"] = "pixels"
    """Convention for coordinates in the rows: pixels of the screenshot, or 0 to 1000, 100 or 1 along each side."""
    task_start: int | None = Field(None, ge=0, lt=2**53)
    """First task of ``data.train`` to use, by the number at the end of its id."""
    task_end: int | None = Field(None, ge=0, lt=2**53)
    """Last task of ``data.train`` to use, inclusive."""
    on_gap: Literal["drop", "empty"] = "drop"
    """GUI steps after a missing one, whose agent memory is unknown: drop and count them, or show an empty memory."""
    drop_memory: float = Field(0.0, ge=0, le=1)
    """Probability that a training prompt has no agent memory."""
    corrupt_memory: float = Field(0.0, ge=0, le=1)
    """Probability that half of the agent memory of a training prompt is left out."""


def check_settings(recipe: Recipe) -> Iterator[Problem]:
    """Check that the prompt has content and the answer an action."""
    steps: Steps = recipe.settings
    for name in ("sections", "answer", "actions"):
        yield from empty_or_repeated(f"data.steps.{name}", list(getattr(steps, name)))
    if "predicted" not in steps.answer:
        rule, remedy = 'must have "predicted", the action that is evaluated', 'Add "predicted".'
        yield Problem("recipe.steps_answer_incomplete", rule, "data.steps.answer", list(steps.answer), remedy)
    if steps.task_start is not None and steps.task_end is not None and steps.task_start > steps.task_end:
        rule = f"must be at least task_start (={steps.task_start})"
        yield Problem("recipe.task_range_reversed", rule, "data.steps.task_end", steps.task_end, "Correct the range.")
    if BOX_FORMATS.get(recipe.dataset.boxes, XYXY).unit != "pixels":
        rule, remedy = "must have no unit for the task steps", "Name the unit in data.steps.places."
        yield Problem("recipe.steps_box_unit", rule, "data.boxes", recipe.dataset.boxes, remedy)
    yield from _memory_fractions_fit(steps)


def _memory_fractions_fit(steps: Steps) -> Iterator[Problem]:
    both = steps.drop_memory + steps.corrupt_memory
    if both > 1:
        rule = "drop_memory + corrupt_memory must be at most 1"
        yield Problem(
            "recipe.memory_fractions_too_large", rule, "data.steps.corrupt_memory", both, "Lower one of them."
        )
    if both and not {"short_term", "long_term"} & set(steps.sections):
        rule = "must have short_term or long_term if drop_memory or corrupt_memory is above 0"
        remedy = "Add one of them, or set both fractions to 0."
        yield Problem("recipe.no_memory_to_drop", rule, "data.steps.sections", list(steps.sections), remedy)


def dry_run_settings(recipe: Recipe, synthetic: bool) -> dict[str, Any]:
    """Return the changes for a dry run: the model family's convention, and values that synthetic rows have."""
    coordinates = _coordinates(recipe).name
    defaults = Steps()
    names = ("actions", "gestures", "places", "task_start", "task_end") if synthetic else ()
    return {"coordinates": coordinates, **{name: getattr(defaults, name) for name in names}}


def _coordinates(recipe: Recipe) -> Coordinates:
    model = recipe.model
    return choose_coordinates(recipe.settings.coordinates, model.name, "data.steps.coordinates", model.family)


@dataclass(frozen=True, slots=True)
class StepSettings:
    """``coordinates`` is the model's convention and ``places`` that of the rows. Other fields: ``Steps``."""

    sections: tuple[str, ...]
    answer: tuple[str, ...]
    actions: tuple[str, ...]
    coordinates: Coordinates
    places: Coordinates
    policy: ImagePolicy
    seed: int
    on_gap: str
    gestures: tuple[str, ...] = ("SCROLL",)
    boxes: BoxFormat = XYXY
    drop_memory: float = 0.0
    corrupt_memory: float = 0.0
    task_start: int | None = None
    task_end: int | None = None

    @property
    def shows_memory(self) -> bool:
        """Whether any memory is in the prompt."""
        return bool({"short_term", "long_term"} & set(self.sections))

    def is_gesture(self, action: str) -> bool:
        """Return whether four coordinates of the action are a start and an end point."""
        return fold(action) in {fold(one) for one in self.gestures}

    def known_action(self, text: str) -> str | None:
        """Return the recipe's spelling of an action, or None if the recipe has no such action."""
        return {fold(action): action for action in self.actions}.get(fold(text))


def step_settings(recipe: Recipe, split: str) -> StepSettings:
    """Return the settings for the rows of one split. Task range and memory corruption apply to training alone.

    Raises:
        RecipeError: The coordinate convention of the model family is unknown.
    """
    steps: Steps = recipe.settings
    training = split == "train"
    return StepSettings(
        sections=steps.sections,
        answer=steps.answer,
        actions=steps.actions,
        coordinates=_coordinates(recipe),
        places=COORDINATES[steps.places],
        policy=ImagePolicy.from_recipe(recipe.images, recipe.model),
        seed=recipe.run.seed,
        on_gap=steps.on_gap,
        gestures=steps.gestures,
        boxes=BOX_FORMATS.get(recipe.dataset.boxes, XYXY),
        drop_memory=steps.drop_memory if training else 0.0,
        corrupt_memory=steps.corrupt_memory if training else 0.0,
        task_start=steps.task_start if training else None,
        task_end=steps.task_end if training else None,
    )


def check_places(settings: StepSettings, splits: Mapping[str, Sequence[Sample]]) -> Found:
    """Return a warning if coordinates in pixels end where those of another convention do.

    On a large screen, 0 to 1000 and 0 to 100 are pixels inside the screenshot, so no single row is unusable.
    """
    if settings.places.top is not None:
        return Found()
    found = [(sample.reference["place"], sample.fields["size"]) for sample in splits["train"]]
    points = [(place[at : at + 2], size) for place, size in found if place for at in range(0, len(place), 2)]
    if len(points) < FEWEST_POINTS:
        return Found()
    ends = [max(point[axis] for point, _ in points) for axis in (0, 1)]
    reached = min(max(point[axis] / size[axis] for point, size in points) for axis in (0, 1))
    for name in ("thousand", "hundred"):
        top = COORDINATES[name].top or 0
        if 0.9 * top < min(ends) and max(ends) <= top and reached < 0.7:
            rule = f"coordinates should be pixels, but all of them end at {top} and a part of the screen has none"
            remedy = f'Set data.steps.places to "{name}" if they are 0 to {top} along each side.'
            value = f"x to {ends[0]:g}, y to {ends[1]:g}"
            return Found(notes=(Problem("tasks.steps.places_may_be_relative", rule, "train", value, remedy),))
    return Found()


def read(name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
    """Return the sample of one row.

    ``fields``: question (the goal), task, place and length (position among the steps of its task, from 1), memory
    (AgentMemory before the step), size (of the screenshot), frame, settings, application, notes. ``reference``: action,
    target, place (a point, box or gesture in pixels, or None), gesture (whether it is one), box, short_term, long_term,
    reason, parts, and previous (action, target and place of the previous step, or None).

    Raises:
        RowProblem: The task, goal, screenshot or action is missing, JSON or coordinates are invalid, the step is
            repeated, or the memory is unknown and the recipe does not say ``on_gap = "empty"``.
    """
    settings: StepSettings = origin.settings
    where, link = str(origin.file), link_of(row)
    if link.state == REPEATED:
        raise RowProblem(*STEP_REPEATED, place=where)
    task, goal = number_of(cell(row, origin, "task")), text_of(cell(row, origin, "question"))
    for text, part, what in ((task, "task", "a task id"), (goal, "goal", "a goal")):
        if not text:
            raise RowProblem(f"tasks.steps.{part}_missing", f"the row must have {what}", place=where)
    image = find_screenshot(cell(row, origin, "image"), origin, where)
    size = image_size(row, origin, image, where)
    known = read_reference(row, origin, size, where)
    memory, notes = _agent_memory(link, origin, where)
    fields: dict[str, Any] = {
        "question": goal,
        "task": task,
        "place": link.place,
        "length": link.length,
        "memory": _corrupted(memory, settings, name),
        "size": size,
        "frame": coordinate_frame(size, settings.policy, settings.coordinates),
        "settings": settings,
        "notes": (*known.notes, *notes),
    }
    if application := text_of(cell(row, origin, "application")):
        fields["application"] = application
    fields |= {column: text for column, text in extra_fields(row, origin) if column not in fields}
    reference = {**known.to_dict(), "previous": _action_before(link, origin, size)}
    images = (image,) if "image" in settings.sections else ()
    return Sample(name, "steps", _group(row, origin, task), images, fields, reference)


def find_screenshot(value: Any, origin: RowOrigin, place: str) -> ImageRef:
    """Return the image that a cell names, found as images of other tasks are. It can lack its suffix.

    Raises:
        RowProblem: The cell is empty, the path leaves the image root, or the id has no image or several.
    """
    if isinstance(value, list) and len(value) > 1:
        rule = "a step must have one screenshot"
        raise RowProblem("tasks.steps.several_screenshots", rule, place=place, value=len(value))
    text = name_of(value[0] if value else None) if isinstance(value, list) else name_of(value)
    if not text:
        raise RowProblem(*NO_IMAGE, place=place, value=value)
    try:
        return _find(text, str(origin.image_root))
    except ImageError as error:
        raise RowProblem(*IMAGE_OUTSIDE, place=place, value=error.value) from None
    except _NotFound as problem:
        raise MissingImage(*problem.args, place=place, value=text) from None


class _NotFound(Exception):
    """An id without exactly one image. Its arguments are code and rule."""


def _find(text: str, root: str) -> ImageRef:
    ref = named_image(text, root)
    if names.NOT_FOUND not in ref.found or names.is_image_name(text):
        # An id has no suffix, so adding it is nothing to report.
        return replace(ref, found=tuple(way for way in ref.found if way != names.SUFFIX_ADDED))
    if (number := number_of(text)) != text:
        return _find(number, root)
    several = len(names.candidates(ref.path)) > 1
    raise _NotFound(*(SCREENSHOT_AMBIGUOUS if several else SCREENSHOT_MISSING))


def _group(row: Mapping[str, Any], origin: RowOrigin, task: str) -> str:
    """Return the task, or the recipe's column. ``episodes.link`` has checked that the column has whole tasks."""
    return task if origin.group is None else read_group(row, origin, ())


def _agent_memory(link: Link, origin: RowOrigin, where: str) -> tuple[AgentMemory, tuple[Note, ...]]:
    """Return the memory from the previous step. It is empty for the first step.

    Raises:
        RowProblem: The memory is unknown, the prompt shows it, and the recipe has no rule for this case.
    """
    settings: StepSettings = origin.settings
    if link.previous is None and link.state != GAP:
        return EMPTY, ()
    memory = None if link.previous is None else agent_memory_after(link.previous, origin)
    if memory is not None or not settings.shows_memory:
        return memory or EMPTY, ()
    if settings.on_gap == "drop":
        remedy = 'Set data.steps.on_gap to "empty" to prompt such steps with an empty agent memory.'
        raise RowProblem(*MEMORY_UNKNOWN, place=where, remedy=remedy)
    return EMPTY, (("tasks.steps.memory_shown_empty", "the agent memory is unknown, so the prompt has an empty one"),)


def _corrupted(memory: AgentMemory, settings: StepSettings, name: str) -> AgentMemory:
    """Return the memory for training: sometimes empty or with gaps, drawn by the seed and the row's name.

    A model that only sees the memories of correct runs fails after its own first mistake.
    """
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
