"""Files, folders and packages that a recipe needs."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from toolkit.distribution import pip_install_extra
from toolkit.errors import Problem
from toolkit.recipe.model_kind import is_folder_name
from toolkit.recipe.schema import Recipe


def missing_requirements(recipe: Recipe) -> list[Problem]:
    """Return missing files, folders and packages. ``load_recipe(files=True)`` rejects them."""
    return [*missing_files(recipe), *missing_packages(recipe)]


def missing_files(recipe: Recipe) -> Iterator[Problem]:
    """Yield files and folders of the recipe that do not exist."""
    for name in ("train", "validation", "test"):
        source = getattr(recipe.dataset, name)
        if source is not None and not source.startswith("hub:") and not _source_exists(source):
            yield missing("recipe.rows_missing", "must be an existing file or folder", f"data.{name}", source)
    if recipe.dataset.image_root is not None and not recipe.dataset.image_root.is_dir():
        rule = "must be an existing folder"
        yield missing("recipe.folder_missing", rule, "data.image_root", recipe.dataset.image_root)
    for name in path_keys(type(recipe.settings)):
        file = getattr(recipe.settings, name)
        if file is not None and not file.is_file():
            yield missing("recipe.file_missing", "must be an existing file", f"data.{recipe.task.name}.{name}", file)
    if recipe.model.adapter is not None and not recipe.model.adapter.exists():
        yield missing(
            "recipe.adapter_missing", "must be an existing run or adapter", "model.adapter", recipe.model.adapter
        )
    if is_folder_name(recipe.model.name) and not Path(recipe.model.name).is_dir():
        yield missing("recipe.folder_missing", "must be an existing folder", "model.name", recipe.model.name)
    code = {"rewards.custom": recipe.rewards.custom, "evaluate.metrics": recipe.evaluation.metrics}
    files = [(key, Path(entry.rpartition(":")[0])) for key, entries in code.items() for entry in entries]
    template = recipe.prompt.chat_template
    for key, file in (*files, *([] if template is None else [("prompt.chat_template", template)])):
        if not file.is_file():
            yield missing("recipe.file_missing", "must be an existing file", key, file)


def _source_exists(source: str) -> bool:
    """Return whether a file or folder exists, with or without the ``#split`` at its end."""
    return Path(source).exists() or ("#" in source and Path(source.rpartition("#")[0]).exists())


def path_keys(section: type[object]) -> tuple[str, ...]:
    """Return the keys of a task's settings whose value is a file, which are those of type Path."""
    fields = section.model_fields if issubclass(section, BaseModel) else {}
    return tuple(name for name, info in fields.items() if Path in (info.annotation, *get_args(info.annotation)))


def missing(code: str, rule: str, key: str, path: Path | str) -> Problem:
    """Return the problem of a path that does not exist."""
    return Problem(code, rule, key, str(path), "Correct the path.")


def missing_packages(recipe: Recipe) -> Iterator[Problem]:
    """Yield experiment trackers that are not installed."""
    for package in recipe.run.report_to:
        if find_spec(package) is None:
            remedy = f"Install it with: {pip_install_extra('tracking')}"
            yield Problem("recipe.tracker_not_installed", "must be installed", "run.report_to", package, remedy)
