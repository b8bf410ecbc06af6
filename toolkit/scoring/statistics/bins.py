"""Bins: a numeric column such as age, reduced to a few values for tables."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

NOT_GIVEN = "(not given)"
"""The label of samples without a value in a column."""

AGE_EDGES = (0, 30, 45, 60, 75)
"""Age bins in years, as common in skin registries: 0-29, 30-44, 45-59, 60-74, 75+."""


def bin_label(value: object, edges: Sequence[float]) -> str:
    """Return the label of the bin of a value. Each edge is the first value of its bin.

    >>> [bin_label(age, AGE_EDGES) for age in (0, 29.5, "30", 75.0, -1, None, "unknown")]
    ['0-29', '0-29', '30-44', '75+', '<0', '(not given)', 'unknown']
    >>> [bin_label(fraction, (0, 0.01, 0.1)) for fraction in (0.009, 0.1)]
    ['0 to <0.01', '0.1+']

    Args:
        value: A number or its text. None, blank text and NaN are "(not given)". Other text is returned unchanged.
        edges: Increasing numbers.

    Raises:
        ValueError: ``edges`` is empty or not increasing.
    """
    if not edges or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"edges must rise, got {list(edges)}")
    text = "" if value is None else str(value).strip()
    try:
        number = float(text or "nan")
    except ValueError:
        return text
    return NOT_GIVEN if math.isnan(number) else _name(bisect_right(edges, number), edges)


def _name(index: int, edges: Sequence[float]) -> str:
    """Return the label of the bin below edge ``index``."""
    if index == 0:
        return f"<{edges[0]:g}"
    low = edges[index - 1]
    if index == len(edges):
        return f"{low:g}+"
    high = edges[index]
    if not all(float(edge).is_integer() for edge in edges):
        return f"{low:g} to <{high:g}"
    return f"{low:g}" if high == low + 1 else f"{low:g}-{high - 1:g}"
