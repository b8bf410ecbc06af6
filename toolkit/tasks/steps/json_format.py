"""JSON of a GUI step, in data and in answers: memories, reason, action, target and coordinates.

Data sets and models write the same step with other keys ("next_action", "point") and other coordinates (a list, a text,
named values). All of them are accepted, so that rows need no conversion and a reward measures the step itself.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from toolkit.data.cells import fold

JsonObject = Mapping[str, object]

PARTS: Mapping[str, str] = {
    "short_term": "Short Term",
    "long_term": "Long Term",
    "reason": "Reason",
    "predicted": "Predicted",
}
"""Part of an answer -> its key, in the usual order."""

_KEYS: Mapping[str, tuple[str, ...]] = {
    "short_term": ("short_term", "short_term_memory", "short_memory", "stm"),
    "long_term": ("long_term", "long_term_memory", "long_memory", "ltm"),
    "reason": ("reason", "reasoning", "rationale"),
    "predicted": ("predicted", "prediction"),
    "predicted_action": ("predicted_action", "next_action"),
    "action": ("action", "action_type"),
    "target": ("target", "target_element", "element"),
    "coords": ("coords", "coordinates", "coordinate", "point", "bbox", "box", "bbox_2d", "position"),
}
"""Field -> accepted keys, in any case, with blanks or underscores."""

_FIELD_OF_KEY = {fold(key): field for field, keys in _KEYS.items() for key in keys}
_ACTION_FIELDS = ("action", "target", "coords")


class PredictedAction(BaseModel):
    """One action. ``coords`` is the raw value, which ``parse_point_or_box`` parses."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    action: str | None = None
    target: str | None = None
    coords: Any = None

    @field_validator("action", "target", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class StepParts(BaseModel):
    """The parts of a GUI step. A missing or null part is None."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    short_term: dict[str, Any] | None = None
    long_term: dict[str, Any] | None = None
    reason: str | None = None
    predicted: PredictedAction = PredictedAction()

    @model_validator(mode="before")
    @classmethod
    def _from_known_keys(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        found = known_fields(value)
        return {**found, "predicted": _action_fields(found)}


def read_parts(value: JsonObject) -> tuple[StepParts, list[str]]:
    """Return the parts, and the names of parts of the wrong type, which count as missing."""
    try:
        return StepParts.model_validate(value), []
    except ValidationError as error:
        found = known_fields(value)
        action = _action_fields(found)
        faults = set()
        for place in (tuple(map(str, one["loc"])) for one in error.errors()):
            if place[0] == "predicted" and len(place) > 1:
                action.pop(place[1], None)
                faults.add(f"{place[1]} has a wrong type")
            else:
                found.pop(place[0], None)
                faults.add(f"{PARTS[place[0]]} has a wrong type")
        return StepParts.model_validate({**found, "predicted": action}), sorted(faults)


def known_fields(value: JsonObject) -> dict[str, object]:
    """Return the entries with known keys, by field. The first non-null value of a field is used."""
    found: dict[str, object] = {}
    for key, content in value.items():
        field = _FIELD_OF_KEY.get(fold(str(key)))
        if field is not None and found.get(field) is None:
            found[field] = content
    return found


def order_of(value: JsonObject) -> tuple[str, ...]:
    """Return the parts in the order of the object."""
    action_fields = ("predicted_action", *_ACTION_FIELDS)
    return tuple(dict.fromkeys("predicted" if field in action_fields else field for field in known_fields(value)))


def unknown_keys(value: JsonObject) -> list[str]:
    """Return keys without a meaning for this task."""
    return [str(key) for key in value if fold(str(key)) not in _FIELD_OF_KEY]


def _action_fields(found: JsonObject) -> dict[str, object]:
    """Return the fields of the action: in predicted and predicted_action, in one of them, or beside the memories."""
    level = dict(found)
    for key in ("predicted", "predicted_action"):
        inner = level.get(key)
        if isinstance(inner, Mapping):
            level = known_fields(inner)
        elif isinstance(inner, str):
            level = {**level, "action": inner}
    return {field: level[field] for field in _ACTION_FIELDS if field in level}


def parse_point_or_box(value: Any, *, gesture: bool = False) -> tuple[float, ...] | None:
    """Return a point (2 numbers) or a box (4) in the units of the value, or None for a value without coordinates.

    For a ``gesture``, four numbers are a start and an end point, so an object with the sides of a box is an error.

    >>> parse_point_or_box([12, 30]), parse_point_or_box("12, 30"), parse_point_or_box({"x": 12, "y": 30})
    ((12.0, 30.0), (12.0, 30.0), (12.0, 30.0))
    >>> parse_point_or_box(None) is None
    True

    Raises:
        ValueError: The value has another format.
    """
    numbers = _numbers(value, gesture)
    if not numbers:
        return None
    if len(numbers) not in (2, 4) or any(not math.isfinite(number) or abs(number) > 1e6 for number in numbers):
        raise ValueError(f"coordinates must be two or four numbers, not {value!r}")
    return tuple(numbers)


_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_AXIS = re.compile(r"['\"]?\b[xy][12]?\b['\"]?\s*[:=]")
_POINTS = ("x1", "y1", "x2", "y2")
_CORNERS = (("left", "top", "right", "bottom"), ("xmin", "ymin", "xmax", "ymax"))
_SIDES = (("width", "height"), ("w", "h"))
_MOTION = frozenset(
    map(fold, ("dx", "dy", "delta_x", "delta_y", "scroll_x", "scroll_y", "direction", "distance", "amount"))
)
"""Keys of a scroll whose direction x and y do not have."""
_NOWHERE = frozenset({"", "null", "none", "n/a", "nan", "-"})


def _numbers(value: Any, gesture: bool) -> list[float]:
    if isinstance(value, str):
        return _in_text(value)
    if isinstance(value, Mapping):
        return _by_name({fold(str(key)): one for key, one in value.items()}, gesture)
    if isinstance(value, list | tuple):
        numbers = [one for part in value for one in (part if isinstance(part, list | tuple) else [part])]
        return [] if all(one is None for one in numbers) else [_number(one) for one in numbers]
    if value is None or value != value:
        return []
    raise ValueError(f"{value!r} is not a point or box")


def _in_text(text: str) -> list[float]:
    if text.strip().lower() in _NOWHERE:
        return []
    text = _AXIS.sub(" ", text)
    if _NUMBER.sub("", text).strip(" \t\n()[]{},;"):
        raise ValueError(f"{text!r} is not a point or box")
    return [float(number) for number in _NUMBER.findall(text)]


def _by_name(value: Mapping[str, Any], gesture: bool) -> list[float]:
    for names in (_POINTS,) if gesture else (_POINTS, *_CORNERS):
        if all(name in value for name in names):
            return [_number(value[name]) for name in names]
    if "x" not in value or "y" not in value or not _MOTION.isdisjoint(value):
        raise ValueError(f"{dict(value)!r} is not a point or box")
    if value["x"] is None and value["y"] is None:
        return []
    x, y = _number(value["x"]), _number(value["y"])
    for sides in _SIDES:
        if all(name in value for name in sides):
            if gesture:
                raise ValueError(f"{dict(value)!r} is a box, not two points")
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
