"""Format estimates: percent, percentage points and intervals."""

from toolkit.evaluation.results import Difference
from toolkit.scoring.statistics import Estimate


def percent(estimate: Estimate) -> str:
    """Return an estimate in percent with its interval, or "-" if it has no value."""
    if estimate.value is None:
        return "-"
    return f"{100 * estimate.value:.1f} %{_interval(estimate, '.1f')}"


def points(found: Difference | None) -> str:
    """Return a paired difference in percentage points with its interval, or an empty string if it has no value."""
    if found is None or found.difference.value is None:
        return ""
    return f"{100 * found.difference.value:+.1f}{_interval(found.difference, '+.1f')}"


def _interval(estimate: Estimate, spec: str) -> str:
    if estimate.low is None or estimate.high is None:
        return " [no interval]"
    return f" [{100 * estimate.low:{spec}} to {100 * estimate.high:{spec}}]"
