"""What pydantic found wrong, as plain sentences with file, key, rule, value and the nearest known key."""

import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from toolkit.errors import Problem
from toolkit.recipe.sections import Recipe

Key = tuple[str, ...]
"""A key path: ``("grpo", "learning_rate")``."""

FOREIGN: Mapping[str, str] = {
    "per_device_train_batch_size": "sft.batch_size, or grpo.micro_batch",
    "gradient_accumulation_steps": "sft.accumulation; in [grpo] it follows from prompts_per_step * generations",
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
"""What TRL, peft and transformers call a setting -> what a recipe calls it."""


@dataclass(frozen=True, slots=True)
class Places:
    """Says of a key where it was written: in the recipe's file, or in a ``--set`` on the command line."""

    file: str
    overridden: frozenset[Key] = field(default_factory=frozenset)

    def of(self, key: Key) -> str:
        """``recipes/a.toml: grpo.beta``, or ``--set grpo.beta``."""
        if not key:
            return self.file
        on_command_line = any(override[: len(key)] == key[: len(override)] for override in self.overridden)
        return f"--set {'.'.join(key)}" if on_command_line else f"{self.file}: {'.'.join(key)}"


def schema_problems(errors: Iterable[ErrorDetails], places: Places) -> list[Problem]:
    """One Problem for each of pydantic's errors about a Recipe, in pydantic's order."""
    return [_problem(error, places) for error in errors]


def nearest(word: str, known: Iterable[str]) -> str:
    """``; nearest: <known word>``, or an empty string when none resembles ``word``."""
    close = get_close_matches(word, list(known), n=1)
    return f"; nearest: {close[0]}" if close else ""


def found(value: object) -> str:
    """`` (found <value>)``, shortened."""
    text = repr(value)
    return f" (found {text if len(text) <= 80 else text[:79] + '…'})"


def _problem(error: ErrorDetails, places: Places) -> Problem:
    key = tuple(str(part) for part in error["loc"])
    kind = error["type"]
    if kind == "extra_forbidden":
        return Problem("", _unknown(key), places.of(key))
    if kind == "missing":
        return Problem("", _missing(key), places.of(key))
    rule = _RULES[kind](error.get("ctx", {})) if kind in _RULES else error["msg"]
    value = "" if isinstance(error["input"], dict) else found(error["input"])
    return Problem("", rule + value, places.of(key))


def _missing(key: Key) -> str:
    return f"the section [{key[0]}] is missing" if len(key) == 1 else "is missing and has no default"


def _unknown(key: Key) -> str:
    """Where an unknown key should have stood, as far as its name tells."""
    table, name = key[:-1], key[-1]
    here = f"[{'.'.join(table)}]" if table else "a recipe"
    rule = f"is not a section of {here}" if not table else f"is not a key of {here}"
    homes = [".".join(path) for path, keys in TABLES.items() if name in keys and path and _same_kind(path, table)]
    if homes:
        return f"{rule}; {name} belongs to " + " or ".join(f"[{home}]" for home in homes)
    if name in FOREIGN:
        return f"{rule}; here it is called {FOREIGN[name]}"
    return rule + (nearest(name, TABLES.get(table, ())) or _nearest_elsewhere(name, table))


def _same_kind(path: Key, table: Key) -> bool:
    """Whether both are tables of [imagegen], or neither is: the two kinds of recipes share only [run] and [images]."""
    return (path[0] == "imagegen") == (table[:1] == ("imagegen",))


def _nearest_elsewhere(name: str, table: Key) -> str:
    homes = {
        known: f"{'.'.join(path)}.{known}"
        for path, keys in TABLES.items()
        for known in keys
        if path and _same_kind(path, table)
    }
    close = get_close_matches(name, homes, n=1, cutoff=0.75)
    return f"; nearest: {homes[close[0]]}" if close else ""


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section in a field's type: ``Grpo`` in ``Grpo | None``; None where there is none."""
    parts = (annotation, *typing.get_args(annotation))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _tables(section: type[BaseModel], path: Key = ()) -> Iterator[tuple[Key, tuple[str, ...]]]:
    yield path, tuple(section.model_fields)
    for name, info in section.model_fields.items():
        inner = section_in(info.annotation)
        if inner is not None:
            yield from _tables(inner, (*path, name))


TABLES: Mapping[Key, tuple[str, ...]] = dict(_tables(Recipe))
"""Every table of a recipe, by its path, and the keys it may hold."""

_RULES: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "literal_error": lambda rule: f"must be {rule['expected']}",
    "greater_than": lambda rule: f"must be greater than {rule['gt']:g}",
    "greater_than_equal": lambda rule: f"must be at least {rule['ge']:g}",
    "less_than": lambda rule: f"must be less than {rule['lt']:,}",
    "less_than_equal": lambda rule: f"must be at most {rule['le']:g}",
    "finite_number": lambda rule: "must be a finite number",
    "int_type": lambda rule: "must be a whole number",
    "float_type": lambda rule: "must be a number",
    "bool_type": lambda rule: "must be true or false",
    "string_type": lambda rule: "must be text, in quotes",
    "string_pattern_mismatch": lambda rule: f"must match {rule['pattern']}",
    "path_type": lambda rule: "must be a path, in quotes",
    "tuple_type": lambda rule: 'must be a list, such as ["a", "b"]',
    "too_long": lambda rule: f"must have {rule['max_length']} entries",
    "dict_type": lambda rule: 'must be a table, such as { key = "value" }',
    "model_type": lambda rule: "must be a table with keys of its own",
    "value_error": lambda rule: str(rule["error"]),
}
"""pydantic's error type -> our rule, from the error's context."""
