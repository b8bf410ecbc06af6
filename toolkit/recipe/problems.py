"""Turn pydantic's errors into problems with a code, place, value and suggestion."""

import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from toolkit.errors import NOTHING, Problem
from toolkit.recipe.base import BrokenRules
from toolkit.recipe.renamed import use_new_name
from toolkit.recipe.schema import Recipe

Key = tuple[str, ...]
"""A key path: ``("grpo", "learning_rate")``."""
Tables = Mapping[Key, tuple[str, ...]]
"""Path of a table -> its keys."""

FOREIGN: Mapping[str, str] = {
    "per_device_train_batch_size": "sft.batch_size or grpo.micro_batch",
    "gradient_accumulation_steps": "sft.accumulation (in [grpo], it follows from prompts_per_step * generations)",
    "num_generations": "grpo.generations",
    "max_completion_length": "grpo.max_completion_tokens",
    "max_seq_length": "model.max_tokens",
    "max_length": "model.max_tokens",
    "num_train_epochs": "epochs in [sft] or [grpo]",
    "lr_scheduler_type": "schedule in [sft] or [grpo]",
    "optim": "optimizer in [sft] or [grpo]",
    "loss_type": "grpo.loss",
    "load_in_4bit": 'model.precision = "4bit"',
    "load_in_8bit": 'model.precision = "8bit"',
    "target_modules": "lora.targets",
    "save_steps": "run.checkpoint_steps",
    "logging_steps": "run.log_steps",
    "output_dir": "run.folder and run.name",
}
"""Name of a setting in TRL, peft or transformers -> its name in a recipe."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where keys were set: in the recipe's file, or in ``--set`` on the command line."""

    file: str
    overridden: frozenset[Key] = field(default_factory=frozenset)

    def of(self, key: Key) -> str:
        """Return the place of a key, such as ``recipes/a.toml: grpo.beta`` or ``--set grpo.beta``."""
        if not key:
            return self.file
        on_command_line = any(override[: len(key)] == key[: len(override)] for override in self.overridden)
        return f"--set {'.'.join(key)}" if on_command_line else f"{self.file}: {'.'.join(key)}"

    def of_all(self, problems: Iterable[Problem]) -> list[Problem]:
        """Return the problems with the place where their key was set."""
        return [replace(one, place=self.of(tuple(one.place.split(".")) if one.place else ())) for one in problems]


def schema_problems(errors: Iterable[ErrorDetails], places: Places, model: type[Recipe]) -> list[Problem]:
    """Return the problems of pydantic's errors about a recipe of class ``model``, in pydantic's order."""
    tables = tables_of(model)
    return [problem for error in errors for problem in _problems(error, places, tables)]


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``Did you mean <known word>?``, or an empty string if none resembles ``word``."""
    close = get_close_matches(word, list(known), n=1)
    return f"Did you mean {close[0]}?" if close else ""


def missing_section(name: str, places: Places) -> Problem:
    """Return the problem of a recipe without the section ``name``."""
    return Problem("recipe.section_missing", f"must have a section [{name}]", places.of((name,)), remedy="Add it.")


def _problems(error: ErrorDetails, places: Places, tables: Tables) -> Iterator[Problem]:
    """Yield the problem of an error, or those of every rule between keys that a section breaks."""
    broken = error.get("ctx", {}).get("error")
    if not isinstance(broken, BrokenRules):
        yield _problem(error, places, tables)
        return
    key = tuple(str(part) for part in error["loc"])
    for one in broken.problems:
        yield replace(one, place=places.of((*key, *one.place.split(".")) if one.place else key))


def _problem(error: ErrorDetails, places: Places, tables: Tables) -> Problem:
    key = tuple(str(part) for part in error["loc"])
    kind = error["type"]
    if kind == "extra_forbidden":
        return _unknown(key, places, tables)
    if kind == "missing":
        return _missing(key, places)
    code, rule_of = _RULES.get(kind, ("recipe.value_invalid", None))
    rule = error["msg"] if rule_of is None else rule_of(error.get("ctx", {}))
    value = NOTHING if isinstance(error["input"], dict) else error["input"]
    return Problem(code, rule, places.of(key), value, _remedy(error))


def _remedy(error: ErrorDetails) -> str:
    """Return how to correct a value that pydantic rejects."""
    if error["type"] == "literal_error":
        return nearest(str(error["input"]), re.findall("'([^']+)'", error["ctx"]["expected"])) or "Choose one of them."
    return _REMEDIES.get(error["type"], "Correct the value.")


def _missing(key: Key, places: Places) -> Problem:
    if len(key) == 1:
        return missing_section(key[0], places)
    return Problem("recipe.key_missing", "must be set, because it has no default", places.of(key), remedy="Set it.")


def _unknown(key: Key, places: Places, tables: Tables) -> Problem:
    """Return the problem of an unknown key, with a suggestion."""
    table, name = key[:-1], key[-1]
    if table:
        return Problem(
            "recipe.key_unknown",
            f"must be a key of [{'.'.join(table)}]",
            places.of(key),
            remedy=_suggest(table, name, tables),
        )
    return Problem(
        "recipe.section_unknown", "must be a section of a recipe", places.of(key), remedy=_suggest(table, name, tables)
    )


def _suggest(table: Key, name: str, tables: Tables) -> str:
    if renamed := use_new_name(".".join((*table, name))):
        return renamed
    paths = [".".join(path) for path, keys in tables.items() if name in keys and path and _same_kind(path, table)]
    if paths:
        return f"Move it to {' or '.join(f'[{path}]' for path in paths)}."
    if name in FOREIGN:
        return f"Use {FOREIGN[name]} instead."
    return nearest(name, tables.get(table, ())) or _nearest_elsewhere(name, table, tables) or "Remove it."


def _same_kind(path: Key, table: Key) -> bool:
    """Return whether both or neither are tables of [imagegen]. Both kinds of recipes have only [run] and [images]."""
    return (path[0] == "imagegen") == (table[:1] == ("imagegen",))


def _nearest_elsewhere(name: str, table: Key, tables: Tables) -> str:
    paths = {
        known: f"{'.'.join(path)}.{known}"
        for path, keys in tables.items()
        for known in keys
        if path and _same_kind(path, table)
    }
    close = get_close_matches(name, paths, n=1, cutoff=0.75)
    return f"Did you mean {paths[close[0]]}?" if close else ""


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section in a field's type, such as ``Grpo`` in ``Grpo | None``, or None."""
    parts = (annotation, *typing.get_args(annotation))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def tables_of(model: type[Recipe]) -> Tables:
    """Return the path of every table of a recipe of class ``model``, and its keys."""
    return dict(_tables(model))


def _tables(section: type[BaseModel], path: Key = ()) -> Iterator[tuple[Key, tuple[str, ...]]]:
    yield path, tuple(section.model_fields)
    for name, info in section.model_fields.items():
        inner = section_in(info.annotation)
        if inner is not None:
            yield from _tables(inner, (*path, name))


_RULES: Mapping[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "literal_error": ("recipe.choice_unknown", lambda rule: f"must be {rule['expected']}"),
    "greater_than": ("recipe.out_of_range", lambda rule: f"must be greater than {rule['gt']:,.12g}"),
    "greater_than_equal": ("recipe.out_of_range", lambda rule: f"must be at least {rule['ge']:,.12g}"),
    "less_than": ("recipe.out_of_range", lambda rule: f"must be less than {rule['lt']:,.16g}"),
    "less_than_equal": ("recipe.out_of_range", lambda rule: f"must be at most {rule['le']:,.12g}"),
    "finite_number": ("recipe.not_finite", lambda rule: "must be a finite number"),
    "int_type": ("recipe.wrong_type", lambda rule: "must be a whole number"),
    "float_type": ("recipe.wrong_type", lambda rule: "must be a number"),
    "bool_type": ("recipe.wrong_type", lambda rule: "must be true or false"),
    "string_type": ("recipe.wrong_type", lambda rule: "must be text, in quotes"),
    "string_pattern_mismatch": ("recipe.pattern_mismatch", lambda rule: f"must match {rule['pattern']}"),
    "string_too_long": ("recipe.text_too_long", lambda rule: f"must have at most {rule['max_length']} characters"),
    "path_type": ("recipe.wrong_type", lambda rule: "must be a path, in quotes"),
    "tuple_type": ("recipe.wrong_type", lambda rule: 'must be a list, such as ["a", "b"]'),
    "too_long": ("recipe.too_many_entries", lambda rule: f"must have {rule['max_length']} entries"),
    "dict_type": ("recipe.wrong_type", lambda rule: 'must be a table, such as { key = "value" }'),
    "model_type": ("recipe.wrong_type", lambda rule: "must be a table with keys of its own"),
    "value_error": ("recipe.conflict", lambda rule: str(rule["error"])),
}
"""pydantic's error type -> code, and rule from the error's context."""

_REMEDIES: Mapping[str, str] = {
    "greater_than": "Raise the value.",
    "greater_than_equal": "Raise the value.",
    "less_than": "Lower the value.",
    "less_than_equal": "Lower the value.",
    "string_too_long": "Shorten the text.",
    "value_error": "Change one of them.",
}
"""pydantic's error type -> remedy, if it is not that for all others."""
