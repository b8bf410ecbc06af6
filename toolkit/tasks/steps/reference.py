"""The reference of a row, from ``Output`` and ``Grounding`` or from separate columns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.data.cells import cell, check_unicode, is_missing, text_of
from toolkit.data.literals import parse_or_repair_json
from toolkit.data.task import RowOrigin
from toolkit.errors import RowProblem
from toolkit.scoring.regions import Frame, Size, order_box
from toolkit.tasks.steps.agent_memory import AgentMemory, compact
from toolkit.tasks.steps.json_format import (
    StepParts,
    known_fields,
    order_of,
    parse_point_or_box,
    read_parts,
    unknown_keys,
)

if TYPE_CHECKING:
    from toolkit.tasks.steps.schema import StepSettings

_SEPARATE_FIELDS = ("next_short_term", "next_long_term", "reason", "action", "target", "coords")
"""Fields that replace ``Output`` in a source with separate columns."""

Note = tuple[str, str]
"""Code and rule of a warning about a usable row."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The reference of a row.

    ``place``: a point (2 numbers), or a box or gesture (4) in pixels, or None for an action without coordinates.
    ``gesture``: whether the four numbers are a start and an end point. ``box``: the box that must contain the point.
    ``parts``: the parts of an answer in the order of the row. ``notes``: warnings about the row.
    """

    action: str
    target: str | None
    place: list[float] | None
    gesture: bool
    box: list[float] | None
    output: StepParts
    parts: tuple[str, ...]
    notes: tuple[Note, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the value of ``Sample.reference``."""
        return {
            "action": self.action,
            "target": self.target,
            "place": self.place,
            "gesture": self.gesture,
            "box": self.box,
            "short_term": self.output.short_term,
            "long_term": self.output.long_term,
            "reason": self.output.reason,
            "parts": list(self.parts),
        }


def read_reference(row: Mapping[str, Any], origin: RowOrigin, size: Size, where: str) -> Reference:
    """Return the reference of a row.

    Parts that ``Output`` lacks come from ``Grounding``. If the two differ, ``Output`` is used and a warning is noted.

    Raises:
        RowProblem: A cell is not JSON, the action is missing or unknown, or the coordinates are invalid.
    """
    settings: StepSettings = origin.settings
    raw, output, notes = _output(row, origin, where)
    grounding, more_notes = _grounding(row, origin, where)
    notes += more_notes
    if unknown_keys(raw):
        rule = "Output should have only keys of an answer: the others are not trained"
        notes.append(("tasks.steps.output_key_unknown", rule))
    given_action = output.predicted.action or grounding.predicted.action or ""
    action = settings.known_action(given_action)
    if action is None:
        if not given_action.strip():
            raise RowProblem("tasks.steps.action_missing", "the row must have an action", place=where)
        rule = "the action must be one of data.steps.actions"
        raise RowProblem("tasks.steps.action_unknown", rule, place=where, value=given_action)
    if grounding.predicted.action and settings.known_action(grounding.predicted.action) != action:
        rule = "Output and Grounding should have the same action: that of Output is used"
        notes.append(("tasks.steps.actions_differ", rule))
    target = text_of(output.predicted.target) or text_of(grounding.predicted.target) or None
    gesture = settings.is_gesture(action)
    place, box = _place(row, origin, (output, grounding), size, where, gesture)
    gesture = gesture and place is not None and len(place) == 4
    if place is not None and box is not None and (gesture or len(place) == 2) and not _inside(place[:2], box):
        rule = "the point of Output should be inside the box of Grounding"
        notes.append(("tasks.steps.point_outside_box", rule))
    parts = tuple(dict.fromkeys((*order_of(raw), "predicted")))
    if set(settings.answer) - set(parts):
        rule = "the row should have all parts of data.steps.answer: its target has only the others"
        notes.append(("tasks.steps.answer_part_missing", rule))
    return Reference(action, target, place, gesture, box, output, parts, tuple(notes))


def agent_memory_after(row: Mapping[str, Any], origin: RowOrigin) -> AgentMemory | None:
    """Return the memory that a row passes to the next step, or None if it is missing or unreadable."""
    try:
        _, output, _ = _output(row, origin, "")
    except RowProblem:
        return None
    if not {"short_term", "long_term"} & output.model_fields_set:
        return None
    return AgentMemory(output.short_term or {}, output.long_term or {})


def _output(row: Mapping[str, Any], origin: RowOrigin, where: str) -> tuple[Mapping[str, Any], StepParts, list[Note]]:
    """Return ``Output`` or its separate columns, raw and parsed, and notes."""
    raw, notes = _table(row, origin, "output", where)
    if raw is None:
        raw = {
            name.removeprefix("next_"): cell(row, origin, name) for name in _SEPARATE_FIELDS if name in origin.column
        }
        raw |= {key: _memory_cell(raw[key], where) for key in ("short_term", "long_term") if key in raw}
    raw = _finite(raw)
    parts, faults = read_parts(raw)
    if faults:
        rule = "the parts of Output must have the right types"
        raise RowProblem("tasks.steps.output_wrong_type", rule, place=where, value=faults)
    check_unicode(compact(raw))
    return raw, parts, notes


def _table(
    row: Mapping[str, Any], origin: RowOrigin, name: str, where: str
) -> tuple[dict[str, Any] | None, list[Note]]:
    """Return a cell's JSON object and a note if it was repaired, or None if the cell is empty."""
    value = cell(row, origin, name)
    if value is None or value != value or value == "":
        return None, []
    repaired = False
    if isinstance(value, str):
        try:
            value, repaired = parse_or_repair_json(value)
        except ValueError:
            rule = f"{name.capitalize()} must be JSON"
            raise RowProblem(f"tasks.steps.{name}_not_json", rule, place=where, value=value) from None
    if not isinstance(value, dict):
        rule = f"{name.capitalize()} must be a JSON object"
        raise RowProblem(f"tasks.steps.{name}_not_object", rule, place=where, value=value)
    note = (f"tasks.steps.{name}_repaired", f"{name.capitalize()} should be JSON: it was repaired")
    return value, [note] if repaired else []


def _grounding(row: Mapping[str, Any], origin: RowOrigin, where: str) -> tuple[StepParts, list[Note]]:
    """Return action, target and box of ``Grounding``, with the box as the action's coords."""
    value, notes = _table(row, origin, "grounding", where)
    truth = _inner(_finite(value or {}), "ground_truth")
    original = _inner(truth, "original_step_data")
    found = {**known_fields(original), **{key: one for key, one in known_fields(truth).items() if one is not None}}
    action = {key: found.get(key) for key in ("action", "target")}
    box = original.get("bbox") or truth.get("bbox")
    without_place = isinstance(box, list) and not any(box)  # [0, 0, 0, 0]
    parts, _ = read_parts({**action, "coords": None if without_place else box})
    return parts, notes


def _inner(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = value.get(key, value)
    return inner if isinstance(inner, Mapping) else {}


def _place(
    row: Mapping[str, Any],
    origin: RowOrigin,
    found: tuple[StepParts, StepParts],
    size: Size,
    where: str,
    gesture: bool,
) -> tuple[list[float] | None, list[float] | None]:
    """Return the coordinates that an answer must name, and the box that must contain them.

    The coordinates are the row's coords. For a row without such a key, they are the centre of its box. A gesture keeps
    its direction: start and end are in the order of the row.
    """
    output, grounding = found
    own = cell(row, origin, "bbox")
    box = grounding.predicted.coords if is_missing(own) else own
    edges = _pixels(box, origin.settings, size, where)
    place = _pixels(output.predicted.coords, origin.settings, size, where, ordered=not gesture)
    if place is None and edges is not None and "coords" not in output.predicted.model_fields_set:
        place = edges if len(edges) == 2 else [(edges[0] + edges[2]) / 2, (edges[1] + edges[3]) / 2]
    if place is None:
        return None, None
    if edges is not None and len(edges) == 4:
        return place, edges
    return place, place if len(place) == 4 and not gesture else None


def _pixels(
    value: Any, settings: "StepSettings", size: Size, where: str, *, ordered: bool = True
) -> list[float] | None:
    """Return a point (2 numbers) or a box (4). With ``ordered=False``, four numbers are a start and an end point."""
    try:
        numbers = parse_point_or_box(value, gesture=not ordered)
    except ValueError:
        rule = "coordinates must be [x, y] or [x1, y1, x2, y2]"
        raise RowProblem("tasks.steps.coordinates_malformed", rule, place=where, value=value) from None
    if numbers is None:
        return None
    is_unit = settings.places.top == 1
    if not is_unit and max(numbers) <= 1 and any(number != int(number) for number in numbers):
        rule, remedy = "coordinates must not be fractions of the screen", 'Set data.steps.places to "unit".'
        raise RowProblem("tasks.steps.coordinates_are_fractions", rule, place=where, value=value, remedy=remedy)
    place = Frame(size, size, settings.places).read(numbers)
    if len(place) == 4 and ordered:
        place = list(settings.boxes.to_pixels(place, size))
    if any(not 0 <= number <= side for number, side in zip(place, size * 2, strict=False)):
        rule = "coordinates must be inside the screenshot"
        raise RowProblem("tasks.steps.coordinates_outside_screenshot", rule, place=where, value=f"{value} of {size}")
    if len(place) == 4 and not ordered:
        return place[:2] if place[:2] == place[2:] else place
    if len(place) == 4:
        if list(order_box(*place)) != place:
            rule = f"the corners of a box must be in order ({settings.boxes})"
            remedy = 'Correct the box, or set data.boxes, for example to "xywh".'
            raise RowProblem("tasks.steps.box_corners_reversed", rule, place=where, value=value, remedy=remedy)
        if place[0] == place[2] or place[1] == place[3]:
            return [(place[0] + place[2]) / 2, (place[1] + place[3]) / 2]
    return place


def _finite(value: Any) -> Any:
    """Return the value with null for NaN, which tables write for missing values, and for infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _inside(point: list[float], box: list[float]) -> bool:
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]


def _memory_cell(value: Any, where: str) -> Any:
    """Return a memory from a separate column: an object or JSON text."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return parse_or_repair_json(value)[0]
    except ValueError:
        rule = "an agent memory must be JSON"
        raise RowProblem("tasks.steps.memory_not_json", rule, place=where, value=value) from None
