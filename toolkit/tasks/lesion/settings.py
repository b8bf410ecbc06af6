"""Settings of the task ``lesion``, derived from a recipe."""

from dataclasses import dataclass

from toolkit.data.cells import coordinate_frame
from toolkit.recipe import Recipe
from toolkit.scoring.regions import Coordinates, Frame, Size, choose_coordinates
from toolkit.tasks.lesion.labels import HAM10000, LabelTable, load_labels


@dataclass(frozen=True, slots=True)
class LesionSettings:
    """Settings of ``recipe.Lesion``, ready to use.

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
    lesion = recipe.data.lesion
    return LesionSettings(
        answer=lesion.answer,
        grid=lesion.grid,
        labels=HAM10000 if lesion.labels is None else load_labels(lesion.labels),
        coordinates=choose_coordinates(lesion.coordinates, recipe.model.name, "data.lesion.coordinates"),
        max_side=recipe.images.max_side,
        seed=recipe.run.seed,
        crop=lesion.crop if split in lesion.crop_splits else 1.0,
    )
