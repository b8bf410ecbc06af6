"""Load a recipe from TOML and ``--set`` values with all errors together, and write it as TOML."""

import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w
from pydantic import BaseModel, Field, ValidationError, create_model

from toolkit.errors import Problem, RecipeError, ToolkitError
from toolkit.recipe.base import RecipeTask
from toolkit.recipe.checks import CHECKS
from toolkit.recipe.imagegen import IMAGEGEN_PATHS
from toolkit.recipe.imagegen_checks import IMAGEGEN_CHECKS, SECTIONS, missing_imagegen_files, only_imagegen_stages
from toolkit.recipe.model_kind import is_folder_name
from toolkit.recipe.problems import Key, Places, missing_section, schema_problems, section_in
from toolkit.recipe.requirements import missing_files, missing_packages, path_keys
from toolkit.recipe.schema import DATA_MISSING, Recipe
from toolkit.recipe.sections import SPLITS, Data, SyntheticData
from toolkit.recipe.shipped import find_recipe, suggestion
from toolkit.recipe.toml import MAX_BYTES, long_paths, parse_toml, too_large, unusable_values
from toolkit.recipe.user_code import USER_CODE

Table = dict[str, Any]
Kind = TypeVar("Kind", bound=BaseModel)

Setting = tuple[Key, Any]
"""A key path and its value."""

_CLASSES: dict[tuple[object, ...], type[Recipe]] = {}
"""Classes that ``recipe_model`` has made, by task names and settings."""

_PATHS: frozenset[Key] = frozenset(
    {("model", "adapter"), ("data", "image_root"), ("prompt", "chat_template")}
    | {("data", split) for split in SPLITS}
    | IMAGEGEN_PATHS
)

_CODE: tuple[Key, ...] = (("rewards", "custom"), ("evaluate", "metrics"))
"""Lists of custom code."""

_TASK: Key = ("data", "task")

_MODELS: frozenset[Key] = frozenset(
    {("model", "name"), ("imagegen", "generator", "model")}
    | {("imagegen", part, "encoder") for part in ("selector", "policy", "judge")}
)
"""Keys whose value is a Hub name or a folder."""

_PATH_KEYS: frozenset[Key] = _PATHS | _MODELS | {*_CODE, _TASK, ("run", "folder")}
"""Keys whose value is a path, a name of a model, or code in a file."""


def load_recipe(
    path: Path | str, overrides: Sequence[str] = (), *, tasks: Mapping[str, RecipeTask], files: bool = False
) -> Recipe:
    """Load the recipe in ``path`` with ``overrides``.

    Paths become absolute. Those in the file are relative to its folder, those in ``overrides`` to the working
    directory. The weights of all rewards of the task are filled in, so that the saved copy has every weight.

    Args:
        path: a TOML file, or the name of a shipped recipe.
        overrides: ``key=value`` with a dotted key and a TOML value. It adds the section if the file lacks it.
        tasks: the tasks that ``data.task`` may name (``toolkit.tasks.TASKS``).
        files: also require that the files of the recipe exist.

    Raises:
        RecipeError: with all problems.
    """
    found = find_recipe(Path(path))
    return load_table(_read(found.file), str(found.file), overrides, tasks=tasks, files=files, base=found.base)


def load_table(
    table: Table,
    name: str,
    overrides: Sequence[str] = (),
    *,
    tasks: Mapping[str, RecipeTask],
    files: bool = False,
    base: Path = Path(),
) -> Recipe:
    """Load a recipe from a table of its sections, as ``load_recipe`` does from a file.

    Args:
        table: sections and keys.
        name: the file of the table, or another name for its problems.
        overrides: see ``load_recipe``.
        tasks: see ``load_recipe``.
        files: see ``load_recipe``.
        base: the folder that relative paths in the table start from.

    Raises:
        RecipeError: with all problems.
    """
    settings, problems = _parse_settings(overrides)
    places = Places(name, frozenset(keys for keys, _ in settings))
    unusable = [*unusable_values(table)] + [one for keys, value in settings for one in unusable_values(value, keys)]
    unusable += _long_paths(merge(table, settings), _PATH_KEYS) if not unusable else []
    if unusable:
        raise RecipeError(problems + places.of_all(unusable))
    # The task defines which of its settings are paths, and the path of a custom task must be absolute to load it.
    named = _task_name(_merged(table, base, settings))
    task = _find_task(named, tasks, places)
    model = recipe_model(tasks, named if task else None)
    task_paths = _settings_paths(model)
    if long := _long_paths(merge(table, settings), task_paths):
        raise RecipeError(problems + places.of_all(long))
    raw = _fill_rewards(_merged(table, base, settings, task_paths), task)
    recipe, found = _validate(raw, model, places, files=files)
    if recipe is None or problems or found:
        raise RecipeError(problems + found)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as TOML with every default. Loading it gives an equal recipe.

    Keys with the value None are left out, because None is then the default. So are sections that [imagegen] rejects.
    """
    sections = None if recipe.imagegen is None else set(SECTIONS)
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True, include=sections))


def changed_keys(old: Recipe, new: Recipe) -> dict[str, tuple[object, object]]:
    """Return dotted key -> (old value, new value) of the differences between two recipes.

    None is a value that is not set. A section that only one recipe has is one entry with "on" and "off".
    """
    before, after = (recipe.model_dump(mode="json", exclude_none=True) for recipe in (old, new))
    switched = [name for name in Recipe.model_fields if (name in before) != (name in after)]
    changed: dict[str, tuple[object, object]] = {}
    for name in switched:
        changed[name] = ("on", "off") if before.pop(name, None) else ("off", "on")
        after.pop(name, None)
    values_before, values_after = dict(_dotted(before)), dict(_dotted(after))
    for key in {**values_before, **values_after}:
        if values_before.get(key) != values_after.get(key):
            changed[key] = (values_before.get(key), values_after.get(key))
    return changed


def recipe_model(tasks: Mapping[str, RecipeTask], task: str | None = None) -> type[Recipe]:
    """Return the class of recipes that may name one of ``tasks``, with a section [data.<name>] for their settings.

    Args:
        tasks: name -> task. The mapping must not change.
        task: ``file.py:TASK`` of a custom task, which ``tasks`` finds but does not list, or None.
    """
    own = {} if task is None or task in tasks else {task: tasks[task]}
    settings_of_own = next((one.settings_model for one in own.values()), None)
    # The class keeps `tasks` alive, so its id stays taken. Equal recipes need the same class.
    key = (id(tasks), *own, settings_of_own)
    if key not in _CLASSES:
        _CLASSES[key] = _make_model(tasks, {**tasks, **own})
    return _CLASSES[key]


def restore_recipe(tasks: Mapping[str, RecipeTask], task: str | None, table: Table) -> Recipe:
    """Return the recipe that was pickled in another process."""
    return recipe_model(tasks, task).model_validate(table)


def merge(table: Table, settings: Sequence[Setting]) -> Table:
    """Return ``table`` with ``settings``. Missing tables are added, and the last of two equal keys wins."""
    merged = {key: merge(value, ()) if isinstance(value, dict) else value for key, value in table.items()}
    for keys, value in settings:
        inner = merged
        for key in keys[:-1]:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[keys[-1]] = value
    return merged


def _parse_settings(overrides: Sequence[str]) -> tuple[list[Setting], list[Problem]]:
    """Return key paths with values, and a problem for each override that cannot be parsed.

    A value is TOML (``1e-6``, ``true``, ``["wandb"]``, ``"7"``). A bare word that is not TOML is text.
    """
    settings: list[Setting] = []
    problems: list[Problem] = []
    for text in overrides:
        try:
            parsed = _parse(text)
        except RecipeError as error:
            problems += error.problems
            continue
        if isinstance(parsed, Problem):
            problems.append(parsed)
        else:
            settings.append(parsed)
    return settings, problems


def _parse(text: str) -> Setting | Problem:
    name, equals, value = text.partition("=")
    keys = _parse_key(name)
    if not equals or keys is None:
        remedy = "Write it as grpo.learning_rate=1e-6."
        return Problem("recipe.set_malformed", "must be key=value", f"--set {text}", remedy=remedy)
    if "\n" in value:
        return keys, value
    try:
        return keys, parse_toml(f"value = {value}", f"--set {name}")["value"]
    except tomllib.TOMLDecodeError as error:
        if value.lstrip().startswith(("[", "{", '"', "'")):
            rule = f"must be a TOML value: {error}"
            return Problem("recipe.set_value_not_toml", rule, f"--set {name}", value, "Correct the syntax.")
        return keys, value


def _parse_key(name: str) -> Key | None:
    try:
        table: Any = parse_toml(f"{name} = 0", f"--set {name[:40]}")
    except tomllib.TOMLDecodeError:
        return None
    keys: list[str] = []
    while isinstance(table, dict):
        if len(table) != 1:
            return None
        (key,) = table
        keys.append(key)
        table = table[key]
    return tuple(keys)


def _read(path: Path) -> Table:
    """Return the table of a recipe's file.

    Raises:
        RecipeError: it is not a file that can be read, or not TOML.
    """
    try:
        return _read_file(path)
    except OSError as error:  # no permission, or a name that is too long
        rule, remedy = "must be a file that can be read", "Correct the path or its permissions."
        problem = Problem("recipe.unreadable", rule, str(path), error.strerror, remedy)
        raise RecipeError([problem]) from error


def _read_file(path: Path) -> Table:
    if path.is_dir():
        rule, remedy = "must be a TOML file, not a folder", "Name a file in it."
        raise RecipeError([Problem("recipe.is_folder", rule, str(path), remedy=remedy)])
    if not path.is_file():
        raise RecipeError([Problem("recipe.not_found", "must be an existing file", str(path), remedy=suggestion(path))])
    try:
        # Editors on Windows may write a byte order mark, which TOML does not allow.
        if (size := path.stat().st_size) > MAX_BYTES:
            raise RecipeError([too_large(str(path), size)])
        text = path.read_text(encoding="utf-8-sig")
        return parse_toml(text, str(path))
    except UnicodeDecodeError as error:
        rule = f"must be UTF-8 text, and byte {error.start} is not"
        problem = Problem("recipe.not_utf8", rule, str(path), remedy="Save it as UTF-8.")
        raise RecipeError([problem]) from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError([_syntax_problem(path, text, str(error))]) from error


def _syntax_problem(path: Path, text: str, message: str) -> Problem:
    at = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)", message)
    remedy = "Correct the syntax."
    if at is None or at[1] is None:
        return Problem("recipe.not_toml", f"must be valid TOML: {message}", str(path), remedy=remedy)
    lines = text.splitlines()
    line = lines[int(at[1]) - 1].strip() if int(at[1]) <= len(lines) else ""
    rule = f"must be valid TOML: {message.replace(at[0], '').rstrip('.')}"
    return Problem("recipe.not_toml", rule, f"{path}, line {at[1]}, column {at[2]}", line, remedy)


def _merged(table: Table, base: Path, settings: Sequence[Setting], task_paths: frozenset[Key] = frozenset()) -> Table:
    """Return the recipe's table with ``settings`` and absolute paths. ``task_paths`` is that of ``_resolve``."""
    absolute = [(keys, _resolve(value, Path(), keys, task_paths)) for keys, value in settings]
    return merge(_resolve(table, base, (), task_paths), absolute)


def _long_paths(raw: Table, keys: Iterable[Key]) -> list[Problem]:
    """Return the problems of paths that are longer than file systems allow."""
    found: list[Problem] = []
    for key in sorted(keys):
        value: Any = raw
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        listed = value if isinstance(value, list) else [value]
        found += [one for path in listed if isinstance(path, str) for one in long_paths(path, ".".join(key))]
    return found


def _task_name(raw: Table) -> str:
    """Return the value of ``data.task``, or an empty string."""
    data = raw.get("data")
    name = data.get("task") if isinstance(data, dict) else None
    return name if isinstance(name, str) else ""


def _find_task(name: str, tasks: Mapping[str, RecipeTask], places: Places) -> RecipeTask | None:
    """Return the task of this name, or None.

    Raises:
        RecipeError: ``name`` is ``file.py:TASK``, and the file does not define a valid task.
    """
    try:
        return tasks.get(name)
    except ToolkitError as error:
        raise RecipeError([replace(one, place=f"{places.of(_TASK)}: {one.place}") for one in error.problems]) from error


def _settings_paths(model: type[Recipe]) -> frozenset[Key]:
    """Return the keys of the tasks' settings whose value is a path, which are those of type Path."""
    data = section_in(model.model_fields["data"].annotation) or Data
    sections = {name: section_in(info.annotation) for name, info in data.model_fields.items()}
    own = {name: section for name, section in sections.items() if section and name not in Data.model_fields}
    return frozenset(("data", name, key) for name, section in own.items() for key in path_keys(section))


def _resolve(value: Any, base: Path, key: Key = (), task_paths: frozenset[Key] = frozenset()) -> Any:
    """Return the value of ``key`` with its paths made absolute, relative to ``base``.

    ``task_paths``: keys of the tasks' settings whose value is a path.
    """
    if isinstance(value, dict):
        return {name: _resolve(inner, base, (*key, name), task_paths) for name, inner in value.items()}
    if key in _CODE and isinstance(value, list):
        return [_absolute_code(name, base) for name in value]
    if key == _TASK and isinstance(value, str) and USER_CODE.fullmatch(value):
        return _absolute_code(value, base)
    if key in _PATHS and isinstance(value, list):
        return [_resolve(path, base, key) for path in value]
    is_path = (key in _PATHS or key in task_paths) and isinstance(value, str) and value and not value.startswith("hub:")
    is_folder = key in _MODELS and isinstance(value, str) and is_folder_name(value)
    return _absolute(value, base) if is_path or is_folder else value


def _absolute(path: str, base: Path) -> str:
    # Not Path.resolve: following a link would change the folder of relative image paths.
    return os.path.abspath(base / os.path.expanduser(path))  # noqa: PTH100, PTH111


def _absolute_code(name: object, base: Path) -> object:
    file, _, function = name.rpartition(":") if isinstance(name, str) else ("", "", "")
    return f"{_absolute(file, base)}:{function}" if file else name


def _fill_rewards(raw: Table, task: RecipeTask | None) -> Table:
    rewards = raw.get("rewards", {})
    if not isinstance(rewards, dict) or task is None:
        return raw
    custom = rewards.get("custom", [])
    own = {str(name).rpartition(":")[2]: 1.0 for name in custom} if isinstance(custom, list) else {}
    return {**raw, "rewards": {**task.reward_weights, **own, **rewards}}


def _validate(raw: Table, model: type[Recipe], places: Places, *, files: bool) -> tuple[Recipe | None, list[Problem]]:
    try:
        recipe = _strict(model, raw)
        problems: list[Problem] = []
        broken: set[str] = set()
    except ValidationError as error:
        errors = [details for details in error.errors(include_url=False) if details["type"] != DATA_MISSING]
        problems = schema_problems(errors, places, model)
        broken = {str(details["loc"][0]) for details in errors if details["loc"]}
        recipe = _valid_part(raw, model, broken)
    if "imagegen" in raw:
        problems += places.of_all(only_imagegen_stages(raw))
    elif "data" not in raw:
        problems.append(missing_section("data", places))
        broken.add("data")
    table, missing = (IMAGEGEN_CHECKS, missing_imagegen_files) if "imagegen" in raw else (CHECKS, missing_files)
    checks = [check for sections, check in table if not sections & broken]
    if files and not broken:
        checks += [missing, missing_packages]
    for check in checks:
        problems += places.of_all(check(recipe))
    return (None if problems else recipe), problems


def _strict(section: type[Kind], table: Mapping[str, Any]) -> Kind:
    # From JSON, strict mode accepts a list as a tuple and text as a path, but no text as a number.
    return section.model_validate_json(json.dumps(table, default=str), strict=True)


def _valid_part(raw: Table, model: type[Recipe], broken: set[str]) -> Recipe:
    """Return a recipe of the valid sections. Checks must not read the others."""
    sections = {}
    for name, info in model.model_fields.items():
        kind = section_in(info.annotation)
        if name in raw and name not in broken and kind is not None:
            sections[name] = _strict(kind, raw[name])
    return model.model_construct(**sections)  # type: ignore[arg-type]


def _dotted(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _make_model(tasks: Mapping[str, RecipeTask], named: Mapping[str, RecipeTask]) -> type[Recipe]:
    """Return the class of recipes whose ``data.task`` is a key of ``named``, and which look tasks up in ``tasks``."""
    known = named.values()
    kinds = tuple(one.synthetic.kind for one in known if one.synthetic is not None)
    synthetic: Any = _subclass(SyntheticData, kind=(Literal[kinds], ...)) if kinds else SyntheticData
    sections = {one.name: (one.settings_model, one.settings_model()) for one in known if one.settings_model}
    task: Any = Literal[tuple(named)] if named else str
    data: Any = _subclass(Data, task=(task, ...), synthetic=(synthetic | None, None), **sections)
    model = _subclass(Recipe, data=(data | None, None))
    model.tasks = tasks
    return model


def _subclass(base: type[Kind], **fields: Any) -> type[Kind]:
    """Return ``base`` with added or replaced fields, under the same name. A replaced field keeps its description."""
    descriptions = {name: info.description for name, info in base.model_fields.items()}
    described: dict[str, Any] = {
        name: (annotation, Field(default, description=descriptions.get(name)))
        for name, (annotation, default) in fields.items()
    }
    return create_model(base.__name__, __base__=base, __module__=base.__module__, __doc__=base.__doc__, **described)
