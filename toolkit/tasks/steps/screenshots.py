"""Screenshot of a row: a path below the image root, or the id of an image there."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from toolkit.data.cells import IMAGE_OUTSIDE, NO_IMAGE, name_of, number_of
from toolkit.data.task import RowOrigin
from toolkit.errors import ImageError, MissingImage, RowProblem
from toolkit.images import image_ref
from toolkit.images.ref import ImageRef

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".dcm")
"""Image suffixes, tried in lower and in upper case."""

NOT_THERE = ("tasks.steps.screenshot_missing", "an image with this id must exist in data.image_root")
SEVERAL = ("tasks.steps.screenshot_ambiguous", "only one image in data.image_root must have this id")


def find_screen(value: Any, origin: RowOrigin, place: str) -> ImageRef:
    """Return the image that a cell names. With an image suffix, the cell is a path. Otherwise all suffixes are tried.

    Raises:
        RowProblem: The cell is empty, the path leaves the image root, or the id has no image or several.
    """
    if isinstance(value, list) and len(value) > 1:
        rule = "a step must have one screenshot"
        raise RowProblem("tasks.steps.several_screenshots", rule, place=place, value=len(value))
    text = name_of(value[0] if value else None) if isinstance(value, list) else name_of(value)
    if not text:
        raise RowProblem(*NO_IMAGE, place=place, value=value)
    try:
        return _find(text, str(origin.image_root))
    except ImageError as error:
        raise RowProblem(*IMAGE_OUTSIDE, place=place, value=error.value) from None
    except _NotFound as problem:
        raise MissingImage(*problem.args, place=place, value=text) from None


class _NotFound(Exception):
    """An id without exactly one image. Its arguments are code and rule."""


@lru_cache(maxsize=1 << 14)
def _find(text: str, root: str) -> ImageRef:
    ref = image_ref(text, root, "")
    if ref.path.suffix.lower() in SUFFIXES:
        return ref
    found: dict[tuple[int, int], Path] = {}
    for suffix in ("", *SUFFIXES, *map(str.upper, SUFFIXES)):
        path = f"{ref.path}{suffix}"
        if os.path.isfile(path):  # noqa: PTH113 (a Path costs ten times as much here)
            facts = os.stat(path)  # noqa: PTH116
            found.setdefault(
                (facts.st_dev, facts.st_ino), Path(path)
            )  # on a case-insensitive disk, two names can be one file
    if not found and (number := number_of(text)) != text:
        return _find(number, root)
    if len(found) != 1:
        raise _NotFound(*(SEVERAL if found else NOT_THERE))
    return image_ref(str(next(iter(found.values()))), root, "")
