"""Format the figures of a record: percent, percentage points and intervals."""

from collections.abc import Mapping
from typing import Any


def percent(estimate: Mapping[str, Any]) -> str:
    """Return an estimate in percent with its interval, or "-" if it has no value."""
    if estimate["value"] is None:
        return "-"
    return f"{100 * estimate['value']:.1f} %{_interval(estimate, '.1f')}"


def points(paired: Mapping[str, Any] | None) -> str:
    """Return a paired difference in percentage points with its interval, or an empty string if it has no value."""
    if paired is None or paired["difference"]["value"] is None:
        return ""
    return f"{100 * paired['difference']['value']:+.1f}{_interval(paired['difference'], '+.1f')}"


def _interval(estimate: Mapping[str, Any], spec: str) -> str:
    if estimate["low"] is None or estimate["high"] is None:
        return " [no interval]"
    return f" [{100 * estimate['low']:{spec}} to {100 * estimate['high']:{spec}}]"
