"""Format of a GUI step in data and answers: memories, reason, action, target and coordinates, under several names."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from toolkit.data.cells import fold

PARTS: Mapping[str, str] = {
    "short_term": "Short Term",
    "long_term": "Long Term",
    "reason": "Reason",
    "predicted": "Predicted",
}
"""Part of an answer -> its key, in the usual order."""

_NAMES: Mapping[str, tuple[str, ...]] = {
    "short_term": ("short_term", "short_term_memory", "short_memory", "stm"),
    "long_term": ("long_term", "long_term_memory", "long_memory", "ltm"),
    "reason": ("reason", "reasoning", "rationale"),
    "predicted": ("predicted", "prediction"),
    "predicted_action": ("predicted_action", "next_action"),
    "action": ("action", "action_type"),
    "target": ("target", "target_element", "element"),
    "coords": ("coords", "coordinates", "coordinate", "point", "bbox", "box", "bbox_2d", "position"),
}
_FIELD_OF = {fold(name): field for field, names in _NAMES.items() for name in names}
_ACTION = ("action", "target", "coords")


class PredictedAction(BaseModel):
    """One action. ``coords`` is the raw value, which ``parse_point_or_box`` parses."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    action: str | None = None
    target: str | None = None
    coords: Any = None

    @field_validator("action", "target", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class StepForm(BaseModel):
    """The parts of a GUI step. A missing or null part is None."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    short_term: dict[str, Any] | None = None
    long_term: dict[str, Any] | None = None
    reason: str | None = None
    predicted: PredictedAction = PredictedAction()

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        found = named(value)
        found["predicted"] = _action_in(found)
        return found


def read_form(value: Mapping[str, Any]) -> tuple[StepForm, list[str]]:
    """Return the parts, and the names of parts of the wrong type, which count as missing."""
    try:
        return StepForm.model_validate(value), []
    except ValidationError as error:
        found = named(value)
        found["predicted"] = dict(_action_in(found))
        faults = []
        for path in {tuple(map(str, one["loc"])) for one in error.errors()}:
            if path[0] == "predicted" and len(path) > 1:
                found["predicted"].pop(path[1], None)
            else:
                found.pop(path[0], None)
            faults.append(f"{path[1] if path[0] == 'predicted' and len(path) > 1 else PARTS[path[0]]} has a wrong type")
        return StepForm.model_validate(found), sorted(faults)


def named(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries with known names, under this module's names. The first non-null value of a name is used."""
    found: dict[str, Any] = {}
    for key, content in value.items():
        field = _FIELD_OF.get(fold(str(key)))
        if field is not None and found.get(field) is None:
            found[field] = content
    return found


def order_of(value: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the parts in the order of the object."""
    fields = ["predicted" if field in ("predicted_action", *_ACTION) else field for field in named(value)]
    return tuple(dict.fromkeys(fields))


def unknown_keys(value: Mapping[str, Any]) -> list[str]:
    """Return keys without a meaning for this task."""
    return [str(key) for key in value if fold(str(key)) not in _FIELD_OF]


def _action_in(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of the action: in predicted and predicted_action, in one of them, or beside the memories."""
    level: dict[str, Any] = dict(found)
    for key in ("predicted", "predicted_action"):
        inner = level.get(key)
        if isinstance(inner, Mapping):
            level = named(inner)
        elif isinstance(inner, str):
            level = {**level, "action": inner}
    return {key: level[key] for key in _ACTION if key in level}
