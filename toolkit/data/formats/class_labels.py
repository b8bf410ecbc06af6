"""Class names of columns that store numbers of classes, as ``datasets`` describes them (ClassLabel)."""

import json
from collections.abc import Mapping
from typing import Any

_KEY = b"huggingface"


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return column -> description for the columns with classes, from the metadata of a Parquet or Arrow schema."""
    try:
        features = json.loads((metadata or {}).get(_KEY, b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return names_of_features(features) if isinstance(features, dict) else {}


def names_of_features(features: Mapping[str, Any]) -> dict[str, Any]:
    """Return column -> description for the columns with classes, from the features of ``datasets`` as JSON."""
    return {column: one for column, one in features.items() if _has_classes(one)}


def with_names(value: Any, feature: Any) -> Any:
    """Return a value with its class numbers replaced by their names. -1 is a missing class.

    >>> with_names([1, 0, -1], {"feature": {"names": ["no", "yes"], "_type": "ClassLabel"}, "_type": "List"})
    ['yes', 'no', None]
    >>> classes = {"names": ["no", "yes"], "_type": "ClassLabel"}
    >>> with_names({"category": [1, 0]}, {"feature": {"category": classes}, "_type": "Sequence"})
    {'category': ['yes', 'no']}
    """
    if feature is None or value is None:
        return value
    if isinstance(feature, list):
        return with_names(value, {"_type": "List", "feature": feature[0]})
    kind = feature.get("_type")
    if kind == "ClassLabel":
        names = feature["names"]
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None if value == -1 else value
    if kind in ("List", "LargeList", "Sequence") and isinstance(value, list):
        return [with_names(one, feature["feature"]) for one in value]
    if kind == "Sequence" and isinstance(value, dict) and isinstance(feature["feature"], dict):
        # A sequence of objects is stored as an object of sequences.
        inner = feature["feature"]
        return {name: with_names(one, _sequence_of(inner.get(name))) for name, one in value.items()}
    if kind is None and isinstance(value, dict):
        return {name: with_names(one, feature.get(name)) for name, one in value.items()}
    return value


def _sequence_of(feature: Any) -> Any:
    return None if feature is None else {"_type": "List", "feature": feature}


def _has_classes(feature: Any) -> bool:
    if isinstance(feature, list):
        return any(map(_has_classes, feature))
    if not isinstance(feature, dict):
        return False
    is_class = feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    return is_class or any(_has_classes(one) for one in feature.values() if isinstance(one, dict | list))
