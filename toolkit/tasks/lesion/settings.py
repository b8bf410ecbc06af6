"""Settings of the task ``lesion``, derived from a recipe."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toolkit.data.cells import coordinate_frame
from toolkit.errors import Problem
from toolkit.recipe import Recipe, Section
from toolkit.recipe.checks import empty_or_repeated
from toolkit.scoring.regions import Coordinates, Frame, Size, choose_coordinates
from toolkit.tasks.lesion.labels import HAM10000, LabelTable, load_labels


class Lesion(Section):
    """Settings of the task ``lesion``: parts of the answer, labels and coordinates."""

    answer: tuple[Literal["diagnosis", "location", "size", "features", "bbox", "polygon"], ...] = (
        "diagnosis",
        "location",
        "bbox",
    )
    """Parts of an answer, in this order. A row without a value for a part leaves it out."""
    labels: Path | None = None
    """TOML file of diagnoses (``[[label]] code, name, synonyms``) that replaces the seven of HAM10000."""
    grid: Literal[3, 5] = 3
    """Rows and columns of the grid whose cells name a location in the image."""
    coordinates: Literal["auto", "thousand", "hundred", "unit", "pixels", "pixels28"] = "auto"
    """Convention for coordinates in completions. ``auto`` is that of the model family."""
    crop: float = Field(1.0, gt=0, le=1)
    """Smallest side of a random crop around the lesions, as a fraction of the image side. 1 disables cropping."""
    crop_splits: tuple[Literal["train", "validation", "test"], ...] = ("train",)
    """Splits whose images are cropped."""


def check_settings(recipe: Recipe) -> Iterator[Problem]:
    """Check that an answer has content."""
    listed = list(recipe.settings.answer)
    if not {"diagnosis", "location", "bbox", "polygon"} & set(listed):
        rule = "must have at least one of diagnosis, location, bbox and polygon"
        yield Problem("recipe.lesion_answer_incomplete", rule, "data.lesion.answer", listed, "Add one of them.")
    else:
        yield from empty_or_repeated("data.lesion.answer", listed)


def dry_run_settings(recipe: Recipe, synthetic: bool) -> dict[str, Any]:
    """Return the changes for a dry run: the model family's convention, and no labels that synthetic rows lack."""
    coordinates = choose_coordinates(recipe.settings.coordinates, recipe.model.name, "data.lesion.coordinates").name
    return {"coordinates": coordinates, **({"labels": None} if synthetic else {})}


@dataclass(frozen=True, slots=True)
class LesionSettings:
    """Settings of ``Lesion``, ready to use.

    ``crop`` is the smallest fraction of each side that is shown. 1 means whole images.
    """

    answer: tuple[str, ...]
    grid: int
    labels: LabelTable
    coordinates: Coordinates
    max_side: int
    seed: int
    crop: float

    def frame(self, size: Size) -> Frame:
        """Return the coordinate frame of an image or of its shown crop."""
        return coordinate_frame(size, self.max_side, self.coordinates)


def lesion_settings(recipe: Recipe, split: str) -> LesionSettings:
    """Return the settings for the rows of one split.

    Raises:
        RecipeError: The coordinate convention of the model family is unknown.
        DataError: The recipe's label table is invalid.
    """
    lesion: Lesion = recipe.settings
    return LesionSettings(
        answer=lesion.answer,
        grid=lesion.grid,
        labels=HAM10000 if lesion.labels is None else load_labels(lesion.labels),
        coordinates=choose_coordinates(lesion.coordinates, recipe.model.name, "data.lesion.coordinates"),
        max_side=recipe.images.max_side,
        seed=recipe.run.seed,
        crop=lesion.crop if split in lesion.crop_splits else 1.0,
    )
