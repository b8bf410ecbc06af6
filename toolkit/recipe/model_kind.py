"""Kinds of a recipe's model: a vision-language model or an image generator, a folder or a Hub name."""

import re
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import Problem, RecipeError
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.schema import Recipe

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def is_folder_name(model: str) -> bool:
    """Return whether ``model.name`` is a folder (starts with ``./``, ``../``, ``~`` or ``/``), not a Hub name."""
    return model in (".", "..") or model.startswith(("./", "../", "~")) or Path(model).is_absolute()


def for_language_models(recipe: Recipe, command: str) -> Recipe:
    """Return the recipe of a vision-language model.

    Args:
        recipe: the recipe of a command that does not support image generators.
        command: the command, as the user types it.

    Raises:
        RecipeError: the recipe has [imagegen].
    """
    if recipe.imagegen is not None:
        rule = f"{command} needs the recipe of a vision-language model, and this one has [imagegen]"
        remedy = "Use `toolkit run` or `toolkit imagegen`, which work on image generators."
        raise RecipeError([Problem("recipe.not_vision_language", rule, recipe.run.name, remedy=remedy)])
    return recipe


def for_image_generators(recipe: Recipe, command: str) -> Imagegen:
    """Return the section [imagegen] of a recipe.

    Args:
        recipe: the recipe of a command for image generators only.
        command: the command, as the user types it.

    Raises:
        RecipeError: the recipe is for a vision-language model.
    """
    if recipe.imagegen is None:
        rule = f"{command} needs the recipe of an image generator, and this one has no section [imagegen]"
        remedy = "Choose the run of a recipe with [imagegen]."
        raise RecipeError([Problem("recipe.not_image_generator", rule, recipe.run.name, remedy=remedy)])
    return recipe.imagegen


def model_name_is_valid(recipe: Recipe) -> Iterator[Problem]:
    """Check that the model is ``tiny``, a folder or a Hub name. Only a Hub name has revisions."""
    name, revision = recipe.model.name, recipe.model.revision
    if not is_folder_name(name) and not _HUB_NAME.fullmatch(name):
        rule = "must be tiny, a Hub name (owner/name) or a folder that starts with ./, ../, ~ or /"
        yield Problem("recipe.model_name_malformed", rule, "model.name", name, "Correct the name.")
    if revision is not None and (name == "tiny" or is_folder_name(name)):
        rule = f"must not be set, because model.name (={name}) is not a Hub name"
        yield Problem("recipe.revision_without_hub", rule, "model.revision", revision, "Remove it.")
