"""Replace paths of this machine by public names, in the recipe and in other text that is published."""

import os
import re
from pathlib import Path
from typing import Any

import tomli_w

from toolkit.models.model_paths import PATH_START, public_name
from toolkit.recipe import Recipe
from toolkit.runfolder import hide_secrets

HIDDEN_PATH = "[path]"


def is_hub_name(name: str) -> bool:
    """Return whether ``name`` is ``owner/name``."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def public_recipe(recipe: Recipe) -> str:
    """Return the recipe as TOML, with file names instead of paths.

    Folders of this machine, the settings of other tasks, and [export], which does not change the weights, are left out.
    """
    table = recipe.model_dump(mode="json", exclude_none=True)
    table.pop("export", None)
    table["run"].pop("folder")
    for section in ("data", "imagegen"):
        table.get(section, {}).pop("image_root", None)
    for task in recipe.sections_of_other_tasks if recipe.data is not None else ():
        table["data"].pop(task)
    return tomli_w.dumps(_without_paths(table)).strip()


def scrub(text: str, *paths: Path) -> str:
    """Return ``text`` without secrets and without ``paths`` and the home folder."""
    # Path.home raises an error if there is no home folder.
    for path in (*paths, Path(os.path.expanduser("~"))):  # noqa: PTH111
        if len(path.parts) > 1:
            text = re.sub(re.escape(str(path)) + r"(?=[/\\\s\"'`:,;)\]]|$)", HIDDEN_PATH, text)
    return hide_secrets(text)


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    if not isinstance(value, str) or "\n" in value or not PATH_START.search(value):
        return value
    file, colon, function = value.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{public_name(file)}:{function}"
    return public_name(value)
