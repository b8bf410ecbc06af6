"""Settings of the task ``steps``, derived from a recipe."""

from dataclasses import dataclass

from toolkit.recipe import Recipe
from toolkit.scoring.regions import COORDINATES, Coordinates, choose_coordinates


@dataclass(frozen=True, slots=True)
class StepSettings:
    """``coordinates`` is the model's convention and ``places`` that of the rows. Other fields: ``recipe.Steps``."""

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
    steps, training = recipe.data.steps, split == "train"
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
