"""Columns of images: by numbers in their names, such as ``image_1``, and by values that look like paths of images."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from toolkit.data.cells import fold, is_missing
from toolkit.data.json_stream import Row
from toolkit.data.literals import decoded
from toolkit.data.task import RowOrigin
from toolkit.images import names

_NUMBERED = re.compile(r"(.*?\D)(\d{1,2})")

_IMAGE_PATH = re.compile(rf".*({'|'.join(map(re.escape, names.SUFFIXES))})(#.*)?\W*", re.IGNORECASE | re.DOTALL)


def looks_like_path(text: str) -> bool:
    """Return whether a text ends like the path of an image, or of a frame in it."""
    return len(text) < 4096 and _IMAGE_PATH.fullmatch(text) is not None


def looks_like_image(value: Any) -> bool:
    """Return whether a value is one path of an image or more: a text, a list, an object, or their text in a CSV.

    >>> looks_like_image("a.png"), looks_like_image(["a.png", "ct.nii.gz#3"]), looks_like_image("['a.png']")
    (True, True, True)
    >>> looks_like_image({"path": "a.png"}), looks_like_image("Is it a.png?"), looks_like_image([])
    (True, True, False)
    """
    value = decoded(value)
    if isinstance(value, list | tuple):
        return bool(value) and all(map(looks_like_image, value))
    if isinstance(value, Mapping):
        return any(looks_like_image(one) for one in value.values() if isinstance(one, str))
    return isinstance(value, str) and looks_like_path(value)


def numbered_column(usual: Sequence[str], available: Sequence[str]) -> str | None:
    """Return the first of numbered columns like ``image_1``, ``Image 2`` or ``image3``, or None if there are none.

    >>> numbered_column(("image", "images"), ["id", "Image 2", "Image 1"])
    'Image 1'
    """
    folded = {fold(one) for one in usual}
    found = {
        int(match[2]): column
        for column in reversed(available)
        if (match := _NUMBERED.fullmatch(column)) and fold(match[1]) in folded
    }
    return found[min(found)] if found and min(found) <= 1 else None


def count_numbered(row: Row, origin: RowOrigin) -> int:
    """Return the number of columns ``image_1``, ``image_2``, … with an image. 0: a gap, or columns without numbers."""
    column = origin.column.get("image", "")
    if not column.endswith("1"):
        return 0
    filled = [not is_missing(row.get(name)) for name in numbered_series(column, tuple(row))]
    count = sum(filled)
    return count if all(filled[:count]) else 0


def have_no_images(rows: Sequence[Row], column: str) -> bool:
    """Return whether a column of images, and those of its further numbers, are empty in all rows."""
    cells = (row.get(name) for row in rows for name in numbered_series(column, tuple(row)))
    return all(is_missing(value) or value in ([], "[]") for value in cells)


def image_columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns in which most values look like image paths."""
    columns = dict.fromkeys(column for row in rows for column in row)
    found = []
    for column in columns:
        values = [row[column] for row in rows if not is_missing(row.get(column)) and row[column] != []]
        if values and sum(map(looks_like_image, values)) > len(values) / 2:
            found.append(column)
    return found


@lru_cache(maxsize=1 << 8)
def numbered_series(column: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return a column and the columns of the same name with a higher number, in order of the numbers.

    A column such as ``image_2`` was chosen by the recipe, without the others. A column ``image`` beside ``image_1`` is
    another column, and beside ``image_2`` it is the first image.
    """
    match = _NUMBERED.fullmatch(column)
    base, first = (match[1], int(match[2])) if match else (column, 1)
    found = {first: column}
    for other in columns:
        match = _NUMBERED.fullmatch(other)
        if match and fold(match[1]) == fold(base) and other != column:
            found.setdefault(int(match[2]), other) if int(match[2]) != first else found.setdefault(-1, other)
    if first > 1 or -1 in found or min(found) < first:
        return (column,)
    return tuple(found[number] for number in sorted(found))
