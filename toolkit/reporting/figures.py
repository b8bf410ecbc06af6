"""How a report writes estimates and differences: percent, with interval and n."""

from toolkit.evaluation.results import Difference
from toolkit.scoring.statistics import Estimate

NOTHING = "–"
"""A cell without a value."""


def value(found: Estimate | None) -> str:
    """Return the value in percent.

    >>> value(Estimate(0.5, 8, 0.2, 0.8, "wilson", 8)), value(None)
    ('50.0 %', '–')
    """
    return NOTHING if found is None or found.value is None else f"{100 * found.value:.1f} %"


def interval(found: Estimate | None) -> str:
    """Return the interval in percent.

    >>> interval(Estimate(0.5, 8, 0.2, 0.8, "wilson", 8))
    '20.0 to 80.0'
    """
    if found is None or found.low is None or found.high is None:
        return NOTHING
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}"


def points(found: Estimate | None) -> str:
    """Return a difference in percentage points, with its interval.

    >>> points(Estimate(0.05, 8, -0.01, 0.11, "bootstrap by group", 8))
    '+5.0 (-1.0 to +11.0)'
    """
    if found is None or found.value is None:
        return NOTHING
    if found.low is None or found.high is None:
        return f"{100 * found.value:+.1f} (no interval)"
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def difference(found: Difference | None) -> str:
    """Return a paired difference in percentage points, and whether it is clear."""
    if found is None:
        return NOTHING
    return f"{points(found.difference)}{', clear' if found.clear else ''}"


def number(found: float | None, digits: int = 4) -> str:
    """Return a number with at most this many significant digits.

    >>> number(0.000123456), number(1234567), number(None)
    ('0.0001235', '1,234,567', '–')
    """
    if found is None:
        return NOTHING
    return f"{found:,.0f}" if abs(found) >= 10**digits else f"{found:.{digits}g}"
