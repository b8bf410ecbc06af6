"""Tables with one box for each row, such as those of VinDr-CXR and NIH, grouped into one row for each image.

A table is recognized by a column of images, one of classes, and either four columns of numbers, or boxes and a repeated
image. Columns that are equal in all rows of an image are kept.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, cast

from toolkit.data.formats.base import LEFT_OUT, Format, Look, Reading
from toolkit.data.formats.row_file import RowFile, row_file
from toolkit.data.formats.zip_images import with_images_of
from toolkit.data.json_stream import Record
from toolkit.data.literals import read_literal
from toolkit.errors import DataError
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
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))
_SIDES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("bboxx", "bboxy", "bboxwidth", "bboxheight"))
_CENTRES = tuple(
    (*centre, *sides)
    for centre in (("xcenter", "ycenter"), ("cx", "cy"), ("centerx", "centery"))
    for sides in (("width", "height"), ("w", "h"))
)
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


def _fold(name: object) -> str:
    return "".join(letter for letter in str(name).lower() if letter.isalnum())


@dataclass(frozen=True, slots=True)
class _Columns:
    """Names of the columns: image, class, four corners or one box, and reader. Empty for a missing column."""

    image: str
    label: str
    corners: tuple[str, ...]
    box: str
    reader: str
    has_sides: bool = False
    """Whether ``corners`` are x, y, width and height. Then ``data.boxes`` says whether x and y are a corner."""
    has_centres: bool = False
    """Whether ``corners`` are x and y of the centre, width and height. Then ``data.boxes`` says their unit."""

    def to_corners(self, box: tuple[float, ...]) -> Box:
        """Return the corners of the numbers of a row, in their unit."""
        x, y, z, w = box
        if self.has_centres:
            return x - z / 2, y - w / 2, x + z / 2, y + w / 2
        return (x, y, x + z, y + w) if self.has_sides else (x, y, z, w)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "_Columns | None":
        names = {_fold(name): name for name in reversed(list(row))}
        image, label = (next((names[name] for name in known if name in names), None) for known in (_IMAGES, _LABELS))
        four = (*_CORNERS, *_CENTRES, *_SIDES)
        corners = next((tuple(names[one] for one in each) for each in four if set(each) <= names.keys()), ())
        box, reader = (next((names[name] for name in known if name in names), "") for known in (_BOXES, _READERS))
        if image is None or label is None or not (corners or box) or not _OTHER_TASKS.isdisjoint(names):
            return None
        folded = tuple(map(_fold, corners))
        return cls(image, label, corners, "" if corners else box, reader, folded in _SIDES, folded in _CENTRES)

    @property
    def used(self) -> frozenset[str]:
        return frozenset({self.image, self.label, *self.corners, self.box, self.reader})


@dataclass(slots=True)
class _Image:
    """The boxes of one image: class, numbers or the cell of the box, and reader. ``others`` has the other columns."""

    others: dict[str, Any]
    boxes: list[tuple[str, Any, str]] = field(default_factory=list)
    is_usable: bool = True


def _matches(look: Look) -> bool:
    rows = look.objects
    if not rows or (columns := _Columns.of(rows[0])) is None:
        return False
    if columns.corners:
        return True
    images = [row.get(columns.image) for row in rows]
    # A table with one box and many other columns can also have one row for each image.
    return len(set(map(str, images))) < len(images) and not any(isinstance(row.get(columns.box), dict) for row in rows)


def _records(reading: Reading) -> Iterator[Record]:
    images: dict[str, _Image] = {}
    columns: _Columns | None = None
    for name, row, text in reading.rows():
        columns = columns or (_Columns.of(row) if isinstance(row, dict) else None)
        if columns is None or not isinstance(row, dict) or columns.image not in row:
            reading.skipped.add("a record must have the columns of the table", name, "data.record_not_object")
            continue
        _add(images, row, columns, reading, name)
        if reading.has_repeated_key(name, row, text):
            images[_image_name(row, columns)].is_usable = False
    if columns is None:
        return
    unit = _unit(images, columns) if columns.corners and not columns.has_sides else None
    for image, found in images.items():
        if not found.is_usable:
            continue
        _check_readers(image, found, reading, columns)
        boxes = [list(numbers) if columns.corners else numbers for _, numbers, _ in found.boxes]
        own: dict[str, Any] = {"boxes": boxes, "labels": [label for label, _, _ in found.boxes], "source_format": NAME}
        if unit is not None:
            own["box_format"] = unit
        yield image, {**found.others, "image": image, **own}, None


def _image_name(row: Mapping[str, Any], columns: _Columns) -> str:
    return str(row[columns.image]).strip()


def _add(images: dict[str, _Image], row: Mapping[str, Any], columns: _Columns, reading: Reading, name: str) -> None:
    """Add a row to its image. Columns whose values differ between the rows of an image are left out."""
    image, labels = _image_name(row, columns), _labels(row.get(columns.label))
    others = {key: value for key, value in row.items() if key not in columns.used and _fold(key) != "classid"}
    known = images.setdefault(image, _Image(others))
    for key in [key for key, value in known.others.items() if others.get(key) != value]:
        del known.others[key]
        rule = "columns that differ between the rows of an image are left out"
        reading.notes.add(rule, f"{name}: {key}", "data.box_table_column_differs")
    cells = [row.get(one) for one in columns.corners] if columns.corners else [row.get(columns.box)]
    if labels is None:
        rule = f"a class must be a text or a whole number {LEFT_OUT}"
        reading.skipped.add(rule, name, "data.box_table_class_not_text", row.get(columns.label))
        known.is_usable = False
        return
    if labels and all(_fold(label) in _WITHOUT for label in labels):
        return
    if not labels or any(map(_is_missing, cells)):
        rule = f"a row must have a class and a box, or the class No finding {LEFT_OUT}"
        reading.skipped.add(rule, f"{name}: {dict(row)}"[:100], "data.box_table_row_incomplete")
        known.is_usable = False
        return
    reader = str(row.get(columns.reader, "")) if columns.reader else ""
    if not columns.corners:
        known.boxes += [(label, cells[0], reader) for label in labels]
        return
    numbers = tuple(_number(cell) for cell in cells)
    if any(math.isnan(number) for number in numbers):
        rule = f"a box must have four numbers {LEFT_OUT}"
        reading.skipped.add(rule, f"{name}: {cells}", "data.box_table_not_number")
        known.is_usable = False
        return
    known.boxes += [(label, numbers, reader) for label in labels]


def _labels(value: Any) -> tuple[str, ...] | None:
    """Return the classes of a cell: a text, or a list such as VinDr-Mammo's ['Mass', 'Asymmetry'] of one box.

    A whole number is the number of a class. None: an entry is missing, or neither text nor whole number.
    """
    if _is_missing(value):
        return ()
    found = read_literal(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    classes = [_class(one) for one in found] if isinstance(found, list) else [_class(value)]
    return None if "" in classes else tuple(classes)


def _class(value: Any) -> str:
    """Return the name of a class, or an empty text if the value is none. pandas writes the class 1 as 1.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _is_missing(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan


def _unit(images: Mapping[str, _Image], columns: _Columns) -> str:
    """Return the format of the numbers: fractions of the image if no number of the whole table is above 1."""
    order = "cxcywh" if columns.has_centres else "xyxy"
    numbers = [number for image in images.values() for _, box, _ in image.boxes for number in box]
    return f"{order} unit" if numbers and max(numbers) <= 1 else order


def _check_readers(image: str, found: _Image, reading: Reading, columns: _Columns) -> None:
    """Count images of several readers.

    Raises:
        DataError: Two readers marked the same finding, which would be two boxes of the reference.
    """
    if len({reader for _, _, reader in found.boxes}) < 2:
        return
    reading.notes.add("the boxes of several readers are one list", image, "data.box_table_several_readers")
    for (label, box, reader), (other_label, other_box, other) in combinations(found.boxes, 2):
        same = reader != other and label == other_label and isinstance(box, tuple)
        if same and box_iou(columns.to_corners(box), columns.to_corners(other_box)) > 0.5:
            raise DataError(
                "data.box_table_marked_twice",
                "a finding must have one box, but two readers marked the same one",
                place=f"{reading.look.path}: {image}",
                value=f"{label} by {reader} and {other}",
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
                reading.skipped.add(rule, f"line {rows.line_num}: {cells}", "data.box_table_row_incomplete")
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
