"""Settings of the task ``steps``, derived from a recipe."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from toolkit.errors import Problem
from toolkit.recipe import Recipe, Section
from toolkit.recipe.checks import empty_or_repeated
from toolkit.scoring.regions import COORDINATES, Coordinates, choose_coordinates


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
    coordinates: Literal["auto", "thousand", "hundred", "unit", "pixels", "pixels28"] = "auto"
    """Convention for coordinates in completions. ``auto`` is that of the model family."""
    places: Literal["pixels", "thousand", "hundred", "unit"] = "pixels"
    """Convention for coordinates in the rows: pixels of the screenshot, or 0 to 1000, 100 or 1 along each side."""
    task_start: int | None = Field(None, ge=0)
    """First task of ``data.train`` to use, by the number at the end of its id."""
    task_end: int | None = Field(None, ge=0)
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
    steps: Steps = recipe.settings
    coordinates = choose_coordinates(steps.coordinates, recipe.model.name, "data.steps.coordinates").name
    defaults = Steps()
    names = ("actions", "places", "task_start", "task_end") if synthetic else ()
    return {"coordinates": coordinates, **{name: getattr(defaults, name) for name in names}}


@dataclass(frozen=True, slots=True)
class StepSettings:
    """``coordinates`` is the model's convention and ``places`` that of the rows. Other fields: ``Steps``."""

    sections: tuple[str, ...]
    answer: tuple[str, ...]
    actions: tuple[str, ...]
    coordinates: Coordinates
    places: Coordinates
    max_side: int
    seed: int
    on_gap: str
    drop_memory: float = 0.0
    corrupt_memory: float = 0.0
    task_start: int | None = None
    task_end: int | None = None

    @property
    def shows_memory(self) -> bool:
        """Whether any memory is in the prompt."""
        return bool({"short_term", "long_term"} & set(self.sections))


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
        coordinates=choose_coordinates(steps.coordinates, recipe.model.name, "data.steps.coordinates"),
        places=COORDINATES[steps.places],
        max_side=recipe.images.max_side,
        seed=recipe.run.seed,
        on_gap=steps.on_gap,
        drop_memory=steps.drop_memory if training else 0.0,
        corrupt_memory=steps.corrupt_memory if training else 0.0,
        task_start=steps.task_start if training else None,
        task_end=steps.task_end if training else None,
    )
