"""Locations in words: the grid cell with the centre of a lesion, formatted and parsed."""

import re
from collections.abc import Mapping, Sequence

from toolkit.scoring.regions.boxes import Box, Size, centre

Location = tuple[int, int]
"""Row and column of a grid cell, from 0 at the upper left."""

GRIDS: Mapping[int, tuple[Sequence[str], Sequence[str]]] = {
    3: (("upper", "center", "lower"), ("left", "center", "right")),
    5: (("far upper", "upper", "center", "lower", "far lower"), ("far left", "left", "center", "right", "far right")),
}
"""Cells per side -> names of the rows and of the columns."""

_SYNONYMS = {
    "top": "upper",
    "bottom": "lower",
    "middle": "center",
    "centre": "center",
    "central": "center",
    "superior": "upper",
    "inferior": "lower",
    "extreme": "far",
}
_WORD = re.compile(r"[a-z]+")


def locate_box(box: Box, size: Size, grid: int = 3) -> Location:
    """Return the cell with the centre of a box. The image has ``grid`` equal cells per side.

    >>> locate_box((0, 0, 20, 20), (90, 60)), locate_box((40, 25, 50, 35), (90, 60))
    ((0, 0), (1, 1))
    """
    x, y = centre(box)
    row, column = (int(grid * value / side) for value, side in ((y, size[1]), (x, size[0])))
    return min(max(row, 0), grid - 1), min(max(column, 0), grid - 1)


def format_location(location: Location, grid: int = 3) -> str:
    """Return the cell in words, row first.

    >>> format_location((0, 2)), format_location((1, 1)), format_location((4, 0), 5)
    ('upper-right', 'center-center', 'far lower-far left')
    """
    rows, columns = GRIDS[grid]
    return f"{rows[location[0]]}-{columns[location[1]]}"


def parse_location(text: str, grid: int = 3) -> Location | None:
    """Return the cell that a text names, also by synonyms, or None if it names none or several.

    If a text names only a row or only a column, the other is the center. A grid without far cells reads "far" as the
    nearer cell.

    >>> parse_location("Top left quadrant"), parse_location("in the centre"), parse_location("lower")
    ((0, 0), (1, 1), (2, 1))
    >>> parse_location("left or right") is None
    True
    """
    rows, columns = GRIDS[grid]
    words = [_SYNONYMS.get(word, word) for word in _WORD.findall(text.lower())]
    found_rows, found_columns, center = set(), set(), False
    for before, word in zip(["", *words], words, strict=False):
        name = f"far {word}" if before == "far" and grid > 3 else word
        if word == "center":  # the name of the middle row and of the middle column
            center = True
        elif name in rows:
            found_rows.add(rows.index(name))
        elif name in columns:
            found_columns.add(columns.index(name))
    if max(len(found_rows), len(found_columns)) > 1 or not (found_rows or found_columns or center):
        return None
    middle = grid // 2
    return next(iter(found_rows), middle), next(iter(found_columns), middle)


def location_score(named: Location, true: Location, grid: int = 3) -> float:
    """Return 1 for the right cell, decreasing with the Manhattan distance to 0 for opposite corners.

    GRPO learns nothing from a group of completions with equal rewards. The neighbour of the right cell therefore scores
    more than a distant cell.

    >>> location_score((0, 0), (0, 0)), location_score((1, 1), (0, 0)), location_score((2, 2), (0, 0))
    (1.0, 0.5, 0.0)
    """
    distance = abs(named[0] - true[0]) + abs(named[1] - true[1])
    return 1 - distance / (2 * (grid - 1))
