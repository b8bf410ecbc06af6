"""Custom tasks: a ``Task`` in a Python file, which a recipe names as ``file.py:TASK``."""

import hashlib
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from toolkit.data.task import Task
from toolkit.errors import Problem, RecipeError
from toolkit.recipe import Data, Section
from toolkit.recipe.user_code import UserCode, load_user_code

_CODE = UserCode(
    area="tasks",
    what="task",
    label="a custom task",
    example="my_task.py:TASK",
    fail=lambda problem: RecipeError([problem]),
    belongs=lambda value: isinstance(value, Task),
)

_LOADED: dict[tuple[str, bytes], Task] = {}
"""(entry, digest of its file) -> task. Loading a recipe twice returns the same task."""


def load_task(entry: str, taken: frozenset[str]) -> Task:
    """Return the task that ``entry`` names. The file runs again only after its content changes.

    Args:
        entry: ``file.py:TASK``. A relative path starts at the working directory.
        taken: names that a custom task must not have.

    Raises:
        RecipeError: the file cannot be loaded, or its object is not a valid task.
    """
    file = Path(entry.rpartition(":")[0])
    digest = hashlib.sha256(file.read_bytes()).digest() if file.is_file() else b""
    key = (str(file.absolute()) + entry, digest)
    if key not in _LOADED:
        found = load_user_code(entry, Path(), _CODE)
        _LOADED[key] = replace(_checked(found, entry, taken), entry=entry)
    return _LOADED[key]


def _checked(found: object, entry: str, taken: frozenset[str]) -> Task:
    if not isinstance(found, Task):
        rule, remedy = "must be a Task", "Write: TASK = Task(name=..., ...)."
        raise RecipeError([Problem("tasks.not_a_task", rule, entry, found, remedy)])
    if not found.name.isidentifier() or found.name in taken | Data.model_fields.keys():
        rule = "the name of a task must be an identifier that is not another task or a key of [data]"
        raise RecipeError([Problem("tasks.name_invalid", rule, entry, found.name, "Rename the task.")])
    if found.rewards.keys() != found.reward_weights.keys():
        rule = "every reward must have a default weight, and no other name may have one"
        names = sorted(found.rewards.keys() ^ found.reward_weights.keys())
        raise RecipeError([Problem("tasks.weights_do_not_match", rule, entry, names, "Correct reward_weights.")])
    if found.settings_model is not None:
        _check_defaults(found.settings_model, entry)
    return found


def _check_defaults(model: type[Section], entry: str) -> None:
    try:
        model()
    except ValidationError as error:
        keys = [".".join(map(str, details["loc"])) for details in error.errors()]
        rule = "every key of the settings must have a valid default"
        raise RecipeError([Problem("tasks.setting_without_default", rule, entry, keys, "Add defaults.")]) from error
