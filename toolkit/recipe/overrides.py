"""Parse ``--set grpo.learning_rate=1e-6``, which overrides a value of a recipe."""

import tomllib
from collections.abc import Sequence
from typing import Any

from toolkit.errors import Problem

Setting = tuple[tuple[str, ...], Any]
"""A key path and its value."""


def parse_settings(overrides: Sequence[str]) -> tuple[list[Setting], list[Problem]]:
    """Return key paths with values, and a problem for each override that cannot be parsed.

    A value is TOML (``1e-6``, ``true``, ``["wandb"]``, ``"7"``). A bare word that is not TOML is text.
    """
    settings: list[Setting] = []
    problems: list[Problem] = []
    for text in overrides:
        parsed = _parse(text)
        if isinstance(parsed, Problem):
            problems.append(parsed)
        else:
            settings.append(parsed)
    return settings, problems


def merge(table: dict[str, Any], settings: Sequence[Setting]) -> dict[str, Any]:
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


def _parse(text: str) -> Setting | Problem:
    name, equals, value = text.partition("=")
    keys = _parse_key(name)
    if not equals or keys is None:
        remedy = "Write it as grpo.learning_rate=1e-6."
        return Problem("recipe.set_malformed", "must be key=value", f"--set {text}", remedy=remedy)
    if "\n" in value:
        return keys, value
    try:
        return keys, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        if value.lstrip().startswith(("[", "{", '"', "'")):
            rule = f"must be a TOML value: {error}"
            return Problem("recipe.set_value_not_toml", rule, f"--set {name}", value, "Correct the syntax.")
        return keys, value


def _parse_key(name: str) -> tuple[str, ...] | None:
    try:
        table: Any = tomllib.loads(f"{name} = 0")
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
