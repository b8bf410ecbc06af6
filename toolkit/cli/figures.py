"""Figures of a record as text: percent, points, intervals."""

from collections.abc import Mapping
from typing import Any


def percent(estimate: Mapping[str, Any]) -> str:
    """An Estimate with its interval; "-" where there is none."""
    if estimate["value"] is None:
        return "-"
    return f"{100 * estimate['value']:.1f} %{_interval(estimate, '.1f')}"


def points(paired: Mapping[str, Any] | None) -> str:
    """A Paired in percentage points with its interval; empty where there is none."""
    if paired is None or paired["difference"]["value"] is None:
        return ""
    return f"{100 * paired['difference']['value']:+.1f}{_interval(paired['difference'], '+.1f')}"


def _interval(estimate: Mapping[str, Any], form: str) -> str:
    if estimate["low"] is None or estimate["high"] is None:
        return " [no interval]"
    return f" [{100 * estimate['low']:{form}} to {100 * estimate['high']:{form}}]"
