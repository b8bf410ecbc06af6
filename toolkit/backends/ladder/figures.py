"""What TRL logs of each pass, put together where one pass was made in parts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Figures = Mapping[str, list[float]]
"""Name -> one value a pass since the last line of the log."""


def counted(figures: Figures) -> dict[str, int]:
    """How many values each figure has."""
    return {name: len(values) for name, values in figures.items()}


def forget(figures: Figures, since: Mapping[str, int]) -> None:
    """Take off the values that came after ``since``."""
    for name, values in figures.items():
        del values[since.get(name, 0) :]


def take(figures: Figures, since: Mapping[str, int]) -> dict[str, float]:
    """The values that one part of a pass added, taken off again. ``num_tokens`` is a sum so far, and stays."""
    added = {}
    for name, values in figures.items():
        if name != "num_tokens" and len(values) > since.get(name, 0):
            added[name] = values.pop()
    return added


def put_together(parts: Sequence[Mapping[str, float]], weights: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """One value a figure for the whole pass.

    Args:
        parts: what ``take`` gave for each part.
        weights: ``tokens`` and ``rows`` of each part, and under a figure's own name others than the tokens.
    """
    return {name: _one(name, [part[name] for part in parts], weights) for name in parts[0]}


def _one(name: str, values: list[float], weights: Mapping[str, Sequence[float]]) -> float:
    known = [(value, weight) for value, weight in zip(values, _weights(name, weights), strict=True) if value == value]
    if not known:
        return math.nan
    if name.endswith(("/low_min", "/high_max")):
        pick: Any = min if name.endswith("min") else max
        return float(pick(value for value, _ in known))
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else 0.0


def _weights(name: str, weights: Mapping[str, Sequence[float]]) -> Sequence[float]:
    return weights.get(name.partition("/")[0], weights["tokens"])
