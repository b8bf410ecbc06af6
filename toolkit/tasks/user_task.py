"""Custom tasks: a ``Task`` in a Python file, which a recipe names as ``file.py:TASK``."""

import hashlib
import keyword
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from numbers import Real
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from toolkit.data.sample import Answer, Sample
from toolkit.data.task import SetMetrics, Task
from toolkit.errors import DataError, Problem, RecipeError, ToolkitError
from toolkit.identifiers import Description, without_names
from toolkit.recipe import Data, Section
from toolkit.recipe.user_code import UserCode, load_user_code, raised_at

_CODE = UserCode(
    area="tasks",
    what="task",
    label="a custom task",
    example="my_task.py:TASK",
    fail=lambda problem: RecipeError([problem]),
    belongs=lambda value: isinstance(value, Task),
)

_RESULTS: Mapping[str, type] = {
    "read": Sample,
    "instruction": str,
    "question": str,
    "target": str,
    "parse": Answer,
    "scores": Mapping,
    "shapes": tuple,
    "set_metrics.values": Mapping,
}
"""Function of a task -> the type of its result."""

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
        _LOADED[key] = _guarded(replace(_checked(found, entry, taken), entry=entry))
    return _LOADED[key]


def _checked(found: object, entry: str, taken: frozenset[str]) -> Task:
    if not isinstance(found, Task):
        rule, remedy = "must be a Task", "Write: TASK = Task(name=..., ...)."
        raise RecipeError([Problem("tasks.not_a_task", rule, entry, found, remedy)])
    if not _is_name(found.name) or found.name in taken | Data.model_fields.keys():
        rule = "the name of a task must be an identifier that is not another task or a key of [data]"
        raise RecipeError([Problem("tasks.name_invalid", rule, entry, found.name, "Rename the task.")])
    columns = found.columns if isinstance(found.columns, Mapping) else {}
    required = {name for names in found.required for name in names.split("|")}
    if not required <= columns.keys() or any(isinstance(names, str) for names in columns.values()):
        rule = "must have a tuple of column names for each field, and every required field"
        raise RecipeError([Problem("tasks.columns_invalid", rule, f"{entry}: columns", found.columns, "Correct it.")])
    for name in ("rewards", "reward_weights"):
        if not isinstance(given := getattr(found, name), Mapping):
            rule = f"{name} must be a dictionary with the names of the rewards as keys"
            raise RecipeError([Problem("tasks.rewards_invalid", rule, entry, given, "Correct it.")])
    if found.rewards.keys() != found.reward_weights.keys():
        rule = "every reward must have a default weight, and no other name may have one"
        names = sorted(found.rewards.keys() ^ found.reward_weights.keys())
        raise RecipeError([Problem("tasks.weights_do_not_match", rule, entry, names, "Correct reward_weights.")])
    if found.settings_model is not None:
        _check_defaults(found.settings_model, entry)
    return found


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)


def _guarded(task: Task) -> Task:
    """Return the task with functions that report an exception, or a result of another type, with its place.

    The rewards are left as they are, because training reports their errors.
    """
    names = ("read", "instruction", "question", "target", "parse", "scores", "labels", "check", "settings", "shapes")
    wrapped: dict[str, Any] = {name: _guard(task, name, getattr(task, name)) for name in (*names, "placeholders")}
    for name in ("stratum", "link", "notes"):
        if (function := getattr(task, name)) is not None:
            wrapped[name] = _guard(task, name, function)
    if task.set_metrics is not None:
        metrics = task.set_metrics
        part, values = (_guard(task, f"set_metrics.{name}", getattr(metrics, name)) for name in ("part", "values"))
        wrapped["set_metrics"] = SetMetrics(part, values)
    baseline = _guard(task, "baseline", task.baseline)
    wrapped["baseline"] = lambda samples: _guard(task, "baseline", baseline(samples))
    if task.synthetic is not None:
        wrapped["synthetic"] = replace(task.synthetic, write=_guard(task, "synthetic.write", task.synthetic.write))
    return replace(task, **wrapped)


def _guard(task: Task, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    place, kind = f"{task.entry}: {name}", _RESULTS.get(name)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            found = function(*args, **kwargs)
        except ToolkitError:
            raise
        except Exception as error:  # Any exception of the user's code is reported with its line.
            in_function = error.__traceback__ is not None and error.__traceback__.tb_next is not None
            where = raised_at(error) if in_function else "the arguments of the function"
            rule, remedy = "a function of a custom task must not raise an exception", f"Correct {where}."
            value = Description(f"{type(error).__name__}: {without_names(str(error))}")
            raise DataError("tasks.function_raised", rule, place=place, value=value, remedy=remedy) from error
        if kind is not None and not isinstance(found, kind):
            rule, remedy = f"must return an object of type {kind.__name__}", "Correct the function."
            raise DataError("tasks.result_wrong_type", rule, place=place, value=found, remedy=remedy)
        if name == "scores":
            _check_scores(found, {task.primary, *task.also}, place)
        if name == "set_metrics.values":
            _check_scores(found, set(), place)
        return found

    return call


def _check_scores(scores: Mapping[str, object], needed: set[str], place: str) -> None:
    if needed - scores.keys() or any(value is not None and not _is_fraction(value) for value in scores.values()):
        raise DataError(
            "tasks.scores_invalid",
            "must return numbers from 0 to 1 or None, with the scores that primary and also name",
            place=place,
            value=dict(scores),
            remedy="Correct the function.",
        )


def _is_fraction(value: object) -> bool:
    return isinstance(value, Real) and 0 <= float(value) <= 1


def _check_defaults(model: Any, entry: str) -> None:
    if not (isinstance(model, type) and issubclass(model, Section)):
        rule, remedy = "settings_model must be a subclass of Section", "Write: class Settings(Section): ..."
        raise RecipeError([Problem("tasks.settings_not_a_section", rule, entry, model, remedy)])
    try:
        model()
    except ValidationError as error:
        keys = [".".join(map(str, details["loc"])) for details in error.errors()]
        rule = "every key of the settings must have a valid default"
        raise RecipeError([Problem("tasks.setting_without_default", rule, entry, keys, "Add defaults.")]) from error
