"""Tables of boxes of published datasets, whose columns say their layout without a doubt.

RSNA Pneumonia Detection, SIIM-FISABIO-RSNA COVID-19, TBX11K (its table on Kaggle) and DeepLesion (``DL_info.csv``).
Each gives one row for each image, with boxes in pixels as [x1, y1, x2, y2].
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from toolkit.data.cells import is_missing
from toolkit.data.formats.base import LEFT_OUT, Format, Look, Reading
from toolkit.data.json_stream import Record
from toolkit.data.literals import read_literal
from toolkit.scoring.regions import Box

Row = Mapping[str, Any]
Boxes = list[tuple[str, Box]]
"""Class and box of each object."""


@dataclass(frozen=True, slots=True)
class _Table:
    """A published table.

    Attributes:
        columns: the columns by which it is recognized.
        image: row -> its image.
        boxes: row -> its boxes. It raises KeyError, TypeError or ValueError for a row with other values.
        others: row -> further columns of the image.
    """

    name: str
    columns: tuple[str, ...]
    image: Callable[[Row], str]
    boxes: Callable[[Row], Boxes]
    others: Callable[[Row], dict[str, Any]]


@dataclass(slots=True)
class _Image:
    others: dict[str, Any]
    boxes: Boxes = field(default_factory=list)
    is_usable: bool = True


def _rsna_boxes(row: Row) -> Boxes:
    """Return the box of a row. A row with the Target 0 has none, so its cells must be empty."""
    target, cells = _whole(row["Target"]), [row[side] for side in ("x", "y", "width", "height")]
    if target == 0 and all(map(is_missing, cells)):
        return []
    if target != 1:
        raise ValueError(target)
    return [("Lung Opacity", _from_sides(cells))]


def _siim_boxes(row: Row) -> Boxes:
    """Return the boxes of ``label`` (class, confidence and corners of each), which must be those of ``boxes``."""
    words, cell = str(row["label"]).split(), row["boxes"]
    if words[:1] == ["none"] and len(words) == 6 and is_missing(cell):
        return []
    found = [(words[at], _corners(words[at + 2 : at + 6])) for at in range(0, len(words), 6)]
    others = [_from_sides([one[side] for side in ("x", "y", "width", "height")]) for one in _value(cell)]
    for (_, box), other in zip(found, others, strict=True):
        if any(abs(edge - same) > 1 for edge, same in zip(box, other, strict=True)):
            raise ValueError(box)
    return found


def _tbx11k_boxes(row: Row) -> Boxes:
    """Return the box of a row, whose class is ``tb_type``. Images without tuberculosis have none."""
    cell, label = row["bbox"], str(row["tb_type"])
    if cell == "none" and label == "none":
        return []
    sides = _value(cell)
    if label == "none":
        raise ValueError(label)
    return [(label, _from_sides([sides[side] for side in ("xmin", "ymin", "width", "height")]))]


def _tbx11k_size(row: Row) -> dict[str, Any]:
    return {"width": row["image_width"], "height": row["image_height"]}


def _deep_lesion_boxes(row: Row) -> Boxes:
    return [("Lesion", _corners(str(row["Bounding_boxes"]).split(",")))]


def _deep_lesion_image(row: Row) -> str:
    """Return the path of a slice in the download: ``000001_01_01_109.png`` is the file ``000001_01_01/109.png``."""
    folder, _, file = str(row["File_name"]).rpartition("_")
    return f"{folder}/{file}"


def _from_sides(cells: Sequence[Any]) -> Box:
    x, y, width, height = map(_number, cells)
    return x, y, x + width, y + height


def _corners(cells: Sequence[Any]) -> Box:
    x1, y1, x2, y2 = map(_number, cells)
    return x1, y1, x2, y2


def _value(cell: Any) -> Any:
    """Return the list or object that a cell has as text."""
    return read_literal(cell) if isinstance(cell, str) else cell


def _number(cell: Any) -> float:
    if not math.isfinite(number := float(cell)):
        raise ValueError(cell)
    return number


def _whole(cell: Any) -> int:
    if (number := _number(cell)) != int(number):
        raise ValueError(cell)
    return int(number)


def _matches(table: _Table, look: Look) -> bool:
    return bool(look.objects) and all(row.keys() >= set(table.columns) for row in look.objects)


def _records(table: _Table, reading: Reading) -> Iterator[Record]:
    images: dict[str, _Image] = {}
    for _, row, text in reading.rows():
        if not isinstance(row, dict) or not row.keys() >= set(table.columns):
            reading.skipped.add("a record must have the columns of the table", reading.at, "data.record_not_object")
            continue
        image = images.setdefault(table.image(row), _Image(table.others(row)))
        if reading.has_repeated_key(reading.at, row, text):
            image.is_usable = False
            continue
        try:
            image.boxes += table.boxes(row)
        except (KeyError, TypeError, ValueError, OverflowError):  # an integer beyond the range of floats
            rule = f"a row must have the values of {table.name} {LEFT_OUT}"
            reading.skipped.add(rule, reading.at, "data.box_table_row_incomplete")
            image.is_usable = False
    for name, found in images.items():
        if found.is_usable:
            boxes, labels = [list(box) for _, box in found.boxes], [label for label, _ in found.boxes]
            own = {"boxes": boxes, "labels": labels, "box_format": "xyxy", "source_format": table.name}
            yield name, {**found.others, "image": name, **own}, None


_TABLES = (
    _Table(
        name="RSNA pneumonia boxes",
        columns=("patientId", "x", "y", "width", "height", "Target"),
        image=lambda row: str(row["patientId"]),
        boxes=_rsna_boxes,
        others=lambda row: {"patient_id": str(row["patientId"])},
    ),
    _Table(
        name="SIIM COVID-19 boxes",
        columns=("id", "boxes", "label", "StudyInstanceUID"),
        image=lambda row: str(row["id"]).removesuffix("_image"),
        boxes=_siim_boxes,
        others=lambda row: {"study_id": str(row["StudyInstanceUID"])},
    ),
    _Table(
        name="TBX11K boxes",
        columns=("fname", "image_height", "image_width", "bbox", "target", "tb_type"),
        image=lambda row: str(row["fname"]),
        boxes=_tbx11k_boxes,
        others=_tbx11k_size,
    ),
    _Table(
        name="DeepLesion boxes",
        columns=("File_name", "Patient_index", "Bounding_boxes", "Image_size"),
        image=_deep_lesion_image,
        boxes=_deep_lesion_boxes,
        others=lambda row: {"patient_id": str(row["Patient_index"])},
    ),
)

BOX_DATASETS = tuple(
    Format(
        name=table.name,
        description=f"a table with the columns {', '.join(table.columns)}",
        matches=partial(_matches, table),
        records=partial(_records, table),
    )
    for table in _TABLES
)
