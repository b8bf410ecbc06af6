"""Boxes of a row: read in the format that the recipe, the row or the whole file says. Nothing is swapped or clipped."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.data.cells import cell, fold
from toolkit.data.image_sizes import image_size
from toolkit.data.json_stream import Row
from toolkit.data.literals import decoded
from toolkit.data.row_images import read_images
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import DataError, RowProblem
from toolkit.scoring.regions import (
    BOX_FORMATS,
    SWAPPED,
    TOLERANCE,
    XYXY,
    Box,
    BoxEvidence,
    BoxFormat,
    FoundBox,
    Frame,
    Size,
    clip_box,
    is_writable,
)

BOX_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "bbox": ("bbox",),
    "boxes": ("boxes",),
    "box_format": ("box_format",),
}
"""Fields with boxes, for ``Task.columns``. ``box_format`` is a format of ``data.boxes`` for the boxes of its row."""

OBJECT_BOXES = ("bbox", "bboxes", "box", "boxes")
OBJECT_LABELS = ("category", "categories", "label", "labels", "class", "class_name", "name")
"""Keys of the column ``objects``. See ``objects_of``."""

_CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))
_POINTS = (("x", "y", "width", "height"), ("x", "y", "w", "h"))
"""x and y are the upper left corner in most tools, and the centre in others, such as Roboflow."""
_SIDES = (
    ("left", "top", "width", "height"),
    *(("xmin", "ymin", "width", "height"), ("xmin", "ymin", "w", "h")),
)
_CENTRES = (("cx", "cy", "w", "h"), ("cx", "cy", "width", "height"), ("xcenter", "ycenter", "width", "height"))
_KEYS = (
    *((("xyxy",), one) for one in _CORNERS),
    *((("xywh", "cxcywh"), one) for one in _POINTS),
    *((("xywh",), one) for one in _SIDES),
    *((("cxcywh",), one) for one in _CENTRES),
)
"""Possible meanings of four numbers -> their keys in an object."""

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class RawBox:
    """Four numbers of a row.

    ``format`` is None if only ``data.boxes`` or the whole file says what they mean. ``orders`` are the possible
    meanings of named numbers such as x1 or width, whose unit is still that of ``data.boxes`` or the file. Empty for a
    list.
    """

    numbers: tuple[float, ...]
    format: BoxFormat | None
    orders: tuple[str, ...] = ()

    @property
    def corners(self) -> Box:
        """The corners of named numbers, in their unit."""
        return BoxFormat(self.orders[0]).to_pixels(self.numbers, (1, 1))


def raw_boxes(row: Row, origin: RowOrigin, place: str) -> list[RawBox]:
    """Return the boxes of a row in the order of the row: ``boxes``, otherwise ``bbox``.

    A box is a list of four numbers, such a list as text, or an object with named corners or sides. ``bbox`` can be a
    list of boxes, and ``boxes`` can be one box.

    Raises:
        RowProblem: A box is malformed, or the row names an unknown format.
    """
    many, one = decoded(cell(row, origin, "boxes")), decoded(cell(row, origin, "bbox"))
    if not _has_value(many):
        many = objects_of(row, origin, OBJECT_BOXES)
    listed = many if _has_value(many) else one if _are_boxes(one) else [one] if _has_value(one) else []
    if isinstance(listed, Mapping) or _numbers(listed):
        listed = [listed]
    if not isinstance(listed, list):
        rule = "boxes must be a list of boxes"
        raise RowProblem("data.boxes_not_list", rule, place=place, value=listed)
    own = _own_format(row, origin, place)
    return [_raw_box(value, own, place) for value in listed]


def objects_of(row: Row, origin: RowOrigin, keys: tuple[str, ...]) -> list[Any] | None:
    """Return one value of each object in the column ``objects``, or None without such a column.

    Datasets on the Hub have it: a table of lists, such as ``{"bbox": [...], "category": [...]}``, or a list of tables.
    """
    found = decoded(cell(row, origin, "objects"))
    if isinstance(found, list) and all(isinstance(one, Mapping) for one in found):
        return [next((one[key] for key in keys if key in one), None) for one in found]
    if isinstance(found, Mapping):
        listed = next((found[key] for key in keys if key in found), None)
        return listed if isinstance(listed, list) else None
    return None


def read_boxes(row: Row, origin: RowOrigin, size: Size, place: str) -> list[Box]:
    """Return the boxes of a row in pixels. A box that leaves its image by at most ``TOLERANCE`` is cut at the edge.

    Raises:
        RowProblem: A box is malformed, reversed, outside the image or without an area, or in another unit.
    """
    return [_checked(raw, origin, size, place) for raw in raw_boxes(row, origin, place)]


def small_boxes(sample: Sample) -> Iterator[tuple[str, str]]:
    """Yield a note if a box of the reference has no area in the model's convention (``Task.notes``)."""
    frame: Frame = sample.fields["frame"]
    if not all(is_writable(frame, box) for box in sample.reference["boxes"]):
        rule = "a box should not be smaller than one unit of the model's coordinates: its target has no area"
        yield "data.box_too_small", rule


class FileBoxes:
    """Finds the format of the boxes of one file, in the pass that scans its rows."""

    def __init__(self) -> None:
        self._evidence = BoxEvidence()
        self._points = BoxEvidence(_POINT_FORMATS)
        self._named = BoxEvidence(_NAMED_UNITS)

    def add(self, name: str, row: Row, origin: RowOrigin) -> None:
        """Add the boxes of a row that have no format of their own. The scan counts a row without an image or size."""
        place = str(origin.file)
        try:
            boxes = [raw for raw in raw_boxes(row, origin, place) if raw.format is None]
            images = read_images(name, row, origin) if boxes else ()
            size = image_size(row, origin, images[0], place) if images else (0, 0)
        except RowProblem:
            return
        if min(size) > 0:
            for raw in boxes:
                if not raw.orders:
                    self._evidence.add(name, raw.numbers, size)
                elif len(raw.orders) > 1:
                    self._points.add(name, raw.numbers, size)
                else:
                    self._named.add(name, raw.corners, size)

    def decide(self, place: str) -> tuple[BoxFormat, str]:
        """Return the only format that fits, and a notice about it. Without boxes, the notice is empty.

        Raises:
            DataError: No format fits all boxes, or several do.
        """
        # Boxes without names decide more: their unit is that of named ones.
        known = (one for one in (self._evidence, self._points) if one.example([]))
        evidence = next(known, self._named)
        found = evidence.fitting()
        example = evidence.example(found)
        if example is None:
            return XYXY, ""
        if not found:
            raise _none_fits(place, evidence)
        if len(found) > 1 or evidence.rivals(found):
            raise _several_fit(place, example, evidence, found)
        rule = f"all {evidence.count:,} boxes are read as {_WORDS[found[0].order]} in {_IN[found[0].unit]}"
        reason = "which is the only format that fits them (data.boxes names none)"
        return found[0], f"{rule}, {reason}"


def _none_fits(place: str, evidence: BoxEvidence) -> DataError:
    lines = []
    for one, fits, (name, numbers, (width, height)) in evidence.misfits()[:3]:
        lines.append(
            f'\n  "{one}" fits {fits:,} of {evidence.count:,} boxes, but not {_shown(numbers)} of {name} '
            f"in {width} x {height} pixels"
        )
    if evidence.fits_all(SWAPPED):
        lines.append(f'\n  "{SWAPPED}" fits all boxes: [y1, x1, y2, x2] in pixels')
    return DataError(
        "data.boxes_fit_no_format",
        f"one format must fit all boxes of the file:{''.join(lines)}\n",
        place=place,
        remedy="Set data.boxes to the format of the file. Boxes that do not fit are then counted as unusable.",
    )


def _several_fit(place: str, example: FoundBox, evidence: BoxEvidence, found: Sequence[BoxFormat]) -> DataError:
    rivals = {one: (fits, misfit) for one, fits, misfit in evidence.rivals(found)}
    formats, lines = [*found, *rivals], []
    name, numbers, (width, height) = evidence.example(formats) or example
    for one in formats:
        at = _shown(one.to_pixels(numbers, (width, height)))
        meaning = f"{_WORDS[one.order]} in {_IN[one.unit]}"
        line = f'\n  "{one}": {meaning} puts {name} at {at} of {width} x {height} pixels'
        fits, misfit = rivals.get(one, (0, None))
        if misfit is not None:
            line += f". It fits {fits:,} of {evidence.count:,} boxes, but not {_shown(misfit[1])} of {misfit[0]}"
        lines.append(line)
    names = " or ".join(f'"{one}"' for one in formats)
    remedy = f"Set data.boxes to {names}."
    return DataError(
        "data.boxes_ambiguous",
        f"the boxes must have one meaning, but {_shown(numbers)} can be read in several ways:{''.join(lines)}\n",
        place=place,
        remedy=f"{remedy} Boxes that do not fit are then counted as unusable." if rivals else remedy,
    )


_NAMED_UNITS = ("xyxy", "xyxy unit", "xyxy percent")
"""Formats of named corners. Label Studio has percent."""

_POINT_FORMATS = ("xywh", "cxcywh", "xywh unit", "cxcywh unit", "xywh percent")
"""Formats of x, y, width and height."""

_WORDS = {
    "xyxy": "[x1, y1, x2, y2]",
    "xywh": "[x, y, width, height]",
    "cxcywh": "[centre x, centre y, width, height]",
    "yxyx": "[y1, x1, y2, x2]",
}
_IN = {"pixels": "pixels", "unit": "fractions of the image", "percent": "percent", "thousand": "thousandths"}


def _shown(numbers: tuple[float, ...] | Box) -> str:
    return "[" + ", ".join(f"{number:.6g}" for number in numbers) + "]"


def _checked(raw: RawBox, origin: RowOrigin, size: Size, place: str) -> Box:
    one = raw.format or origin.boxes or XYXY
    one = _in_order(one, raw.orders)
    correct = "Correct the box or data.boxes." if raw.format is None else "Correct the box. Its source says its format."
    if one.unit != "unit" and max(map(abs, raw.numbers)) <= 1 and any(n != int(n) for n in raw.numbers):
        rule = f"a box in {_IN[one.unit]} must not have fractions of the image"
        remedy = f'Set data.boxes to "{one.order} unit".' if raw.format is None else correct
        raise RowProblem("data.box_is_fraction", rule, place=place, value=list(raw.numbers), remedy=remedy)
    box = one.to_pixels(raw.numbers, size)
    if box[0] > box[2] or box[1] > box[3]:
        rule, remedy = f'the corners of a box must be in order ("{one}")', correct
        raise RowProblem("data.box_reversed", rule, place=place, value=list(raw.numbers), remedy=remedy)
    inside = clip_box(box, size)
    if any(abs(edge - cut) > TOLERANCE for edge, cut in zip(box, inside, strict=True)):
        rule, remedy = f'a box must be inside its image ("{one}")', correct
        value = f"{_shown(raw.numbers)} of {size[0]} x {size[1]}"
        raise RowProblem("data.box_outside_image", rule, place=place, value=value, remedy=remedy)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise RowProblem("data.box_without_area", "a box must have an area", place=place, value=list(raw.numbers))
    return inside


def _own_format(row: Row, origin: RowOrigin, place: str) -> BoxFormat | None:
    name = cell(row, origin, "box_format")
    if not _has_value(name):
        return None
    if not isinstance(name, str) or name not in BOX_FORMATS:
        rule, remedy = "box_format must be a format of boxes", f"Choose one of: {', '.join(BOX_FORMATS)}."
        raise RowProblem("data.box_format_unknown", rule, place=place, value=name, remedy=remedy)
    return BOX_FORMATS[name]


def _raw_box(value: Any, own: BoxFormat | None, place: str) -> RawBox:
    orders, listed = _named_numbers(value) if isinstance(value, Mapping) else ((), value)
    numbers = _numbers(listed)
    if numbers is None or len(numbers) != 4:
        rule = "a box must have four numbers"
        raise RowProblem("data.box_malformed", rule, place=place, value=value)
    return RawBox(numbers, None if own is None else _in_order(own, orders), orders)


def _in_order(one: BoxFormat, orders: tuple[str, ...]) -> BoxFormat:
    """Return the format with an order that the names of the numbers allow."""
    return one if not orders or one.order in orders else BoxFormat(orders[0], one.unit)


def _named_numbers(value: Mapping[Any, Any]) -> tuple[tuple[str, ...], list[Any]]:
    """Return the possible meanings of the four numbers of an object, and the numbers. Without any, both are empty."""
    named = {fold(str(key)): one for key, one in value.items()}
    for orders, names in _KEYS:
        if all(name in named for name in names):
            return orders, [named[name] for name in names]
    return (), []


def _numbers(value: Any) -> tuple[float, ...] | None:
    """Return the numbers of a list or of a text such as "12, 30, 40, 50". None if it has anything else."""
    if isinstance(value, str):
        if _NUMBER.sub("", value).strip(" \t[](),;"):
            return None
        value = _NUMBER.findall(value)
    if not isinstance(value, list | tuple):
        return None
    found = list(_each_number(value))
    # The comparison is false for NaN, and true for an integer beyond the range of floats.
    return tuple(found) if all(abs(number) < 1e9 for number in found) else None


def _are_boxes(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, list | tuple | Mapping) for one in value)


def _each_number(values: list[Any] | tuple[Any, ...]) -> Iterator[float]:
    for value in values:
        if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            yield float(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield value
        else:
            yield math.nan


def _has_value(value: Any) -> bool:
    return value is not None and value == value and value not in ("", [])
