"""Tables with one box for each row, such as those of VinDr-CXR and NIH, grouped into one row for each image.

A table is recognized by a column of images, one of classes, and either four columns of numbers, or boxes and a repeated
image. Columns that are equal in all rows of an image are kept. Four numbers keep the names of their columns, so that
``data.boxes`` and all boxes of the file say what the names do not.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, cast

from toolkit.data.cells import fold, is_missing
from toolkit.data.formats.base import LEFT_OUT, Format, Look, Reading
from toolkit.data.formats.row_file import RowFile, row_file
from toolkit.data.formats.zip_images import with_images_of
from toolkit.data.json_stream import Record
from toolkit.data.literals import read_literal
from toolkit.errors import DataError
from toolkit.identifiers import masked, shown_cell
from toolkit.scoring.regions import Box, box_iou

NAME = "table of boxes"
NIH = "NIH BBox_List_2017"

_IMAGES = (
    *("image", "imageid", "imagename", "imagepath", "imageindex", "imagefile"),
    *("filename", "filepath", "file", "path", "imgname", "imgid"),
)
_LABELS = (
    *("classname", "labelname", "categoryname", "label", "class", "category", "celltype", "findinglabel"),
    *("findingcategories", "lesiontype", "finding", "pathology", "abnormality", "disease", "dx", "diagnosis"),
)
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
_POINTS = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("bboxx", "bboxy", "bboxwidth", "bboxheight"))
"""x and y can be a corner or the centre."""
_SIDES = (
    *(("xmin", "ymin", "width", "height"), ("xmin", "ymin", "w", "h"), ("left", "top", "width", "height")),
    ("x1", "y1", "width", "height"),
)
_CENTRES = tuple(
    (*centre, *sides)
    for centre in (("xcenter", "ycenter"), ("cx", "cy"), ("centerx", "centery"))
    for sides in (("width", "height"), ("w", "h"))
)
_NAMES: Mapping[tuple[str, ...], tuple[str, ...]] = {
    **dict.fromkeys(_CORNERS, ("x1", "y1", "x2", "y2")),
    **dict.fromkeys(_CENTRES, ("cx", "cy", "w", "h")),
    **dict.fromkeys(_SIDES, ("left", "top", "width", "height")),
    **dict.fromkeys(_POINTS, ("x", "y", "width", "height")),
}
"""Four columns -> names of their numbers in an object, which ``toolkit.data.boxes`` reads. The first one is used."""

_FEW = 10
"""Tables with fewer boxes are in pixels, or fractions. More are needed to see that they are percent."""
_BOXES = ("bbox", "box")
_READERS = ("radid", "reader", "readerid", "annotator", "annotatorid")
_OTHER_TASKS = frozenset(
    {
        *("question", "answer", "instruction", "messages", "conversations", "conversatons", "options", "output"),
        *("report", "caption", "prompt", "completion", "query", "response"),
    }
)
"""Columns of rows whose boxes belong to a text."""

_WITHOUT = frozenset({"nofinding", "nofindings"})
_NIH_HEADER = "image index,finding label,bbox [x"


@dataclass(frozen=True, slots=True)
class _Columns:
    """Names of the columns: image, class, four numbers or one box, and reader. Empty for a missing column.

    ``names`` has the names of the four numbers in an object.
    """

    image: str
    label: str
    numbers: tuple[str, ...]
    names: tuple[str, ...]
    box: str
    reader: str

    @property
    def is_named(self) -> bool:
        """Whether the names say the meaning of the numbers except for their unit."""
        return self.names[0] != "x"

    def to_corners(self, box: tuple[float, ...]) -> Box:
        """Return the corners of the numbers of a row, in their unit."""
        x, y, z, w = box
        if self.names[0] == "cx":
            return x - z / 2, y - w / 2, x + z / 2, y + w / 2
        return (x, y, z, w) if self.names[0] == "x1" else (x, y, x + z, y + w)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "_Columns | None":
        names = {fold(name): name for name in reversed(list(row))}
        image, label = (next((names[name] for name in known if name in names), None) for known in (_IMAGES, _LABELS))
        four: tuple[str, ...] = next((each for each in _NAMES if set(each) <= names.keys()), ())
        box, reader = (next((names[name] for name in known if name in names), "") for known in (_BOXES, _READERS))
        if image is None or label is None or not (four or box) or not _OTHER_TASKS.isdisjoint(names):
            return None
        numbers = tuple(names[one] for one in four)
        return cls(image, label, numbers, _NAMES.get(four, ()), "" if four else box, reader)

    @property
    def used(self) -> frozenset[str]:
        return frozenset({self.image, self.label, *self.numbers, self.box, self.reader})


@dataclass(slots=True)
class _Image:
    """The boxes of one image: class, numbers or the cell of the box, and reader. ``others`` has the other columns.

    ``place`` is its first row. ``without`` are the readers that found nothing.
    """

    place: str
    others: dict[str, Any]
    boxes: list[tuple[str, Any, str]] = field(default_factory=list)
    without: set[str] = field(default_factory=set)
    is_usable: bool = True


def _matches(look: Look) -> bool:
    rows = look.objects
    if not rows or (columns := _Columns.of(rows[0])) is None:
        return False
    if columns.numbers:
        return True
    images = [row.get(columns.image) for row in rows]
    # A table with one box and many other columns can also have one row for each image.
    return len(set(map(str, images))) < len(images) and not any(isinstance(row.get(columns.box), dict) for row in rows)


def _records(reading: Reading) -> Iterator[Record]:
    images: dict[str, _Image] = {}
    columns: _Columns | None = None
    for _, row, text in reading.rows():
        columns = columns or (_Columns.of(row) if isinstance(row, dict) else None)
        if columns is None or not isinstance(row, dict) or columns.image not in row:
            reading.skipped.add("a record must have the columns of the table", reading.at, "data.record_not_object")
            continue
        _add(images, row, columns, reading)
        if reading.has_repeated_key(reading.at, row, text) and (image := _text(row[columns.image])):
            images[image].is_usable = False
    if columns is None:
        return
    own_format = _own_format(images, columns) if columns.numbers and columns.is_named else None
    for image, found in images.items():
        if not found.is_usable or _contradicts(found, reading):
            continue
        _check_readers(found, reading, columns)
        boxes = [dict(zip(columns.names, one, strict=True)) if columns.numbers else one for _, one, _ in found.boxes]
        own: dict[str, Any] = {"boxes": boxes, "labels": [label for label, _, _ in found.boxes], "source_format": NAME}
        if own_format is not None:
            own["box_format"] = own_format
        yield image, {**found.others, "image": image, **own}, None


def _add(images: dict[str, _Image], row: Mapping[str, Any], columns: _Columns, reading: Reading) -> None:
    """Add a row to its image. Columns whose values differ between the rows of an image are left out."""
    image, labels = _text(row[columns.image]), _labels(row.get(columns.label))
    if not image:
        reading.skipped.add("a row must have an image", reading.at, "data.box_table_row_incomplete")
        return
    others = {key: value for key, value in row.items() if key not in columns.used and fold(key) != "classid"}
    known = images.setdefault(image, _Image(reading.at, others))
    for key in [key for key, value in known.others.items() if others.get(key) != value]:
        del known.others[key]
        rule = "columns that differ between the rows of an image are left out"
        reading.notes.add(rule, f"{reading.at}: {key}", "data.box_table_column_differs")
    cells = [row.get(one) for one in columns.numbers] if columns.numbers else [row.get(columns.box)]
    reader = _text(row.get(columns.reader)) if columns.reader else ""
    if labels is None:
        rule = f"a class must be a text or a whole number {LEFT_OUT}"
        reading.skipped.add(rule, reading.at, "data.box_table_class_not_text", row.get(columns.label))
        known.is_usable = False
        return
    if labels and all(fold(label) in _WITHOUT for label in labels):
        known.without.add(reader)
        return
    if not labels or any(map(is_missing, cells)):
        rule = f"a row must have a class and a box, or the class No finding {LEFT_OUT}"
        reading.skipped.add(rule, reading.at, "data.box_table_row_incomplete")
        known.is_usable = False
        return
    if not columns.numbers:
        known.boxes += [(label, cells[0], reader) for label in labels]
        return
    numbers = tuple(_number(cell) for cell in cells)
    if any(math.isnan(number) for number in numbers):
        rule = f"a box must have four numbers {LEFT_OUT}"
        reading.skipped.add(rule, reading.at, "data.box_table_not_number", masked(", ".join(map(str, cells))))
        known.is_usable = False
        return
    known.boxes += [(label, numbers, reader) for label in labels]


def _contradicts(found: _Image, reading: Reading) -> bool:
    """Return whether a reader has boxes and the class No finding. If two readers disagree, the boxes are used."""
    if not found.boxes or not found.without:
        return False
    if found.without & {reader for _, _, reader in found.boxes}:
        rule = f"an image of the class No finding must not have a box {LEFT_OUT}"
        reading.skipped.add(rule, found.place, "data.box_table_contradicts")
        return True
    rule = "the boxes of an image are used although another reader found nothing"
    reading.notes.add(rule, found.place, "data.box_table_readers_disagree")
    return False


def _labels(value: Any) -> tuple[str, ...] | None:
    """Return the classes of a cell: a text, or a list such as VinDr-Mammo's ['Mass', 'Asymmetry'] of one box.

    A whole number is the number of a class. None: an entry is missing, or neither text nor whole number.
    """
    if is_missing(value):
        return ()
    found = read_literal(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    classes = [_class(one) for one in found] if isinstance(found, list) else [_class(value)]
    return None if "" in classes else tuple(classes)


def _class(value: Any) -> str:
    """Return the name of a class, or an empty text if the value is none. pandas writes the class 1 as 1.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _text(cell: Any) -> str:
    return "" if is_missing(cell) else str(cell).strip()


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):  # an integer beyond the range of floats
        return math.nan


def _own_format(images: Mapping[str, _Image], columns: _Columns) -> str | None:
    """Return the format of the numbers if it is certain: fractions of the image if no number is above 1.

    None if all boxes of the file decide whether they are pixels or percent.
    """
    boxes = [box for image in images.values() for _, box, _ in image.boxes]
    largest = max((number for box in boxes for number in box), default=0)
    order = {"x1": "xyxy", "cx": "cxcywh"}.get(columns.names[0], "xywh")
    if largest <= 1:
        return f"{order} unit" if boxes else order
    return order if len(boxes) < _FEW else None


def _check_readers(found: _Image, reading: Reading, columns: _Columns) -> None:
    """Count images of several readers.

    Raises:
        DataError: Two readers marked the same finding, which would be two boxes of the reference.
    """
    if len({reader for _, _, reader in found.boxes}) < 2:
        return
    reading.notes.add("the boxes of several readers are one list", found.place, "data.box_table_several_readers")
    for (label, box, reader), (other_label, other_box, other) in combinations(found.boxes, 2):
        same = reader != other and label == other_label and isinstance(box, tuple)
        if same and box_iou(columns.to_corners(box), columns.to_corners(other_box)) > 0.5:
            raise DataError(
                "data.box_table_marked_twice",
                "a finding must have one box, but two readers marked the same one",
                place=f"{reading.look.path}, image of {found.place}",
                value=shown_cell(label),
                remedy="Keep the rows of one reader for each image, or merge their boxes.",
            )


def _is_nih(look: Look) -> bool:
    file = row_file(look.path)
    if file is None or file.suffix != ".csv":
        return False
    return file.head(1 << 10).decode("utf-8-sig", "replace").lower().startswith(_NIH_HEADER)


def _nih_records(reading: Reading) -> Iterator[Record]:
    """Yield a row for each image. The header "Bbox [x,y,w,h]" spreads over four columns, and empty ones follow."""
    images: dict[str, dict[str, Any]] = {}
    file = cast(RowFile, row_file(reading.look.path))
    with file.open() as stream:
        rows = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
        next(rows)
        for cells in rows:
            if not any(cells):
                continue
            numbers = [_number(cell) for cell in cells[2:6]]
            if len(numbers) < 4 or any(map(math.isnan, numbers)) or not cells[0].strip() or not cells[1].strip():
                rule = "a row must have an image, a class and four numbers"
                reading.skipped.add(rule, f"line {rows.line_num}", "data.box_table_row_incomplete")
                continue
            x, y, width, height = numbers
            name = cells[0].strip()
            found = images.setdefault(name, {"image": name, "boxes": [], "labels": []})
            found["boxes"].append([x, y, x + width, y + height])
            found["labels"].append(cells[1].strip())
    for name, found in images.items():
        # 00013118_008.png is an image of patient 13118, which its list of images names in the same way.
        patient = {"patient_id": name.partition("_")[0]} if name.partition("_")[0].isdigit() else {}
        yield name, {**found, **patient, "box_format": "xyxy", "source_format": NIH}, None


BOX_TABLE = Format(
    name=NAME,
    description="one row for each box, with columns such as image, label, x_min, y_min, x_max, y_max",
    matches=_matches,
    records=_records,
)
NIH_BOXES = Format(
    name=NIH,
    description="a .csv file with the columns Image Index, Finding Label, Bbox [x,y,w,h]",
    matches=_is_nih,
    records=lambda reading: with_images_of(reading.look.path, _nih_records(reading), reading.images),
    files=lambda look: (look.path,),
    splits=lambda look: (),
)
