"""Coordinates in data and answers: a point or a box, as numbers, text or named values."""

import math
import re
from collections.abc import Mapping
from typing import Any

from toolkit.data.cells import fold

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_AXIS = re.compile(r"['\"]?\b[xy][12]?\b['\"]?\s*[:=]")
_CORNERS = (("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"), ("xmin", "ymin", "xmax", "ymax"))
_SIDES = (("width", "height"), ("w", "h"))
_NOWHERE = frozenset({"", "null", "none", "n/a", "nan", "-"})


def parse_point_or_box(value: Any) -> tuple[float, ...] | None:
    """Return a point (2 numbers) or a box (4) in the units of the value, or None for a value without coordinates.

    >>> parse_point_or_box([12, 30]), parse_point_or_box("12, 30"), parse_point_or_box({"x": 12, "y": 30})
    ((12.0, 30.0), (12.0, 30.0), (12.0, 30.0))
    >>> parse_point_or_box(None) is None
    True

    Raises:
        ValueError: The value has another format.
    """
    numbers = _numbers(value)
    if not numbers:
        return None
    if len(numbers) not in (2, 4) or any(not math.isfinite(number) or abs(number) > 1e6 for number in numbers):
        raise ValueError(f"coordinates must be two or four numbers, not {value!r}")
    return tuple(numbers)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, str):
        return _written(value)
    if isinstance(value, Mapping):
        return _by_name({fold(str(key)): one for key, one in value.items()})
    if isinstance(value, list | tuple):
        flat = [one for part in value for one in (part if isinstance(part, list | tuple) else [part])]
        return [] if all(one is None for one in flat) else [_number(one) for one in flat]
    if value is None or value != value:
        return []
    raise ValueError(f"{value!r} is not a point or box")


def _written(text: str) -> list[float]:
    if text.strip().lower() in _NOWHERE:
        return []
    text = _AXIS.sub(" ", text)
    if _NUMBER.sub("", text).strip(" \t\n()[]{},;"):
        raise ValueError(f"{text!r} is not a point or box")
    return [float(number) for number in _NUMBER.findall(text)]


def _by_name(value: Mapping[str, Any]) -> list[float]:
    for names in _CORNERS:
        if all(name in value for name in names):
            return [_number(value[name]) for name in names]
    if "x" not in value or "y" not in value:
        raise ValueError(f"{dict(value)!r} is not a point or box")
    if value["x"] is None and value["y"] is None:
        return []
    x, y = _number(value["x"]), _number(value["y"])
    for sides in _SIDES:
        if all(name in value for name in sides):
            width, height = (_number(value[name]) for name in sides)
            return [x, y, x + width, y + height]
    return [x, y]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is no number")
    try:
        return float(value)
    except OverflowError:  # a Python integer can exceed the range of float
        raise ValueError("a coordinate is too large") from None
