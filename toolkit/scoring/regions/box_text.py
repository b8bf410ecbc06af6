"""Boxes in completions: numbers or location tokens in the convention of a model, written and parsed."""

import json
import math
import re
from collections.abc import Sequence

from toolkit.scoring.regions.boxes import Box, order_box
from toolkit.scoring.regions.coordinates import Frame

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_TOKEN = re.compile(r"<loc(\d{4})>")


def write_box(frame: Frame, box: Sequence[float]) -> str:
    """Return a box in pixels as text in the model's convention.

    >>> from toolkit.scoring.regions import COORDINATES
    >>> write_box(Frame((600, 450), (600, 450), COORDINATES["thousand"]), (71, 105, 515, 410))
    '[118, 233, 858, 911]'
    >>> write_box(Frame((600, 450), (600, 450), COORDINATES["locations"]), (0, 225, 600, 450))
    '<loc0512><loc0000><loc1023><loc1023>'
    """
    numbers = frame.write(box)
    if frame.coordinates.tokens:
        return "".join(f"<loc{int(number):04d}>" for number in numbers)
    return json.dumps(numbers)


def is_writable(frame: Frame, box: Sequence[float]) -> bool:
    """Return whether a box in pixels still has an area after rounding to the model's convention.

    >>> from toolkit.scoring.regions import COORDINATES
    >>> frame = Frame((1000, 1000), (1000, 1000), COORDINATES["hundred"])
    >>> is_writable(frame, (100, 100, 104, 160)), is_writable(frame, (100, 100, 120, 160))
    (False, True)
    """
    return box_of(frame.write(box), frame) is not None


def parse_box(text: str, frame: Frame) -> Box | None:
    """Return the box of a text in pixels, or None if it is not four numbers with an area between them.

    Brackets can be round or missing, numbers can be floats, and corners can be swapped. Coordinates outside the image
    are kept.
    """
    numbers = parse_numbers(text)
    return box_of(numbers, frame) if len(numbers) == 4 else None


def box_of(numbers: Sequence[float], frame: Frame) -> Box | None:
    """Return the box of four numbers in the model's convention in pixels, or None if it has no area."""
    x1, y1, x2, y2 = frame.read(numbers)
    box = order_box(x1, y1, x2, y2)
    return box if box[0] < box[2] and box[1] < box[3] else None


def parse_numbers(text: str) -> Sequence[float]:
    """Return the finite numbers of a text, or none if it has anything but numbers, brackets, commas and blanks.

    >>> parse_numbers("[1, 2.5]"), parse_numbers("<loc0012><loc0900>"), parse_numbers("1 + 2")
    ([1.0, 2.5], [12.0, 900.0], [])
    """
    text = _TOKEN.sub(r" \1 ", text)
    if _NUMBER.sub("", text).strip(" \t\n[](),;"):
        return []
    numbers = [float(number) for number in _NUMBER.findall(text)]
    return numbers if all(math.isfinite(number) and abs(number) < 1e6 for number in numbers) else []
