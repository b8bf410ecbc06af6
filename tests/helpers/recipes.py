"""Recipes and rows with the tasks of the package."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.data import loading, rows
from toolkit.recipe import Recipe, recipe_model
from toolkit.recipe import load_recipe as load_recipe_of
from toolkit.tasks import TASKS


def load_recipe(path: Path | str, overrides: Sequence[str] = (), *, files: bool = False) -> Recipe:
    """Return the recipe in ``path``."""
    return load_recipe_of(path, overrides, tasks=TASKS, files=files)


def make_recipe(sections: Mapping[str, Any]) -> Recipe:
    """Return the recipe with these sections."""
    return recipe_model(TASKS).model_validate(sections)


def load_data(recipe: Recipe, folder: Path | None = None) -> loading.DataSplits:
    """Return the splits of a recipe."""
    return loading.load_data(recipe, TASKS[recipe.dataset.task], folder)


def read_file(recipe: Recipe, source: str, image_root: Path | None = None, split: str = "train") -> rows.UsableRows:
    """Return the rows of one source."""
    return rows.read_file(recipe, TASKS[recipe.dataset.task], source, image_root, split)
