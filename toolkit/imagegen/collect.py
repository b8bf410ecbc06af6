"""The CSV files that experts return from a rating sheet, as one file for ``imagegen.ratings``.

A page can be downloaded again at any time, so that files overlap. The patients of real images, by which ratings are
divided into splits, are only in the key.
"""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from toolkit.data import row_cache
from toolkit.data.sources import EmbeddedImageStore, find_source, stream_source
from toolkit.errors import DataError
from toolkit.imagegen.sheet import SheetKey
from toolkit.runfolder import write_text

COLUMNS = ("image_path", "rating", "modality", "expert_level", "prompt", "rater_id", "sheet", "page", "position")
"""Columns of a page's CSV."""

_Place = tuple[str, int, int]
"""Rater, page and position: at most one rating."""


def collect_ratings(files: Sequence[Path], key: SheetKey, out: Path) -> int:
    """Write the ratings of all files into one CSV, with ``patient_id`` from the key, and return their number.

    The same rating in several files is written once. Rows are sorted by rater, page and position.

    Args:
        files: CSV files of one sheet, of any pages and raters.
        key: the sheet's key.
        out: must be absent. If it is in the sheet's folder, its paths need no ``imagegen.image_root``.

    Raises:
        DataError: a file is of another sheet or was changed, two files contradict each other, or ``out`` exists.
    """
    if out.exists():
        raise DataError(
            "imagegen.collected_file_exists", "the file must not exist yet", place=out, remedy="Choose another file."
        )
    patient_of = {entry.image_path: entry.patient for entry in key.images}
    rows: dict[_Place, tuple[list[str], Path]] = {}
    for file in files:
        for number, record in enumerate(_records(file), start=1):
            place, cells = _read(record, key, patient_of, f"{file}, row {number}")
            known, other = rows.setdefault(place, (cells, file))
            if known != cells:
                rule = "the files of a sheet must not contradict each other"
                remedy = f"A page was changed after a download. Remove the older of this file and {other.name}."
                raise DataError(
                    "imagegen.sheet_ratings_conflict",
                    rule,
                    place=f"{file}, row {number}",
                    value=record["rating"],
                    remedy=remedy,
                )
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "patient_id"])
    writer.writerows(rows[place][0] for place in sorted(rows))
    write_text(out, text.getvalue())
    return len(rows)


def _records(file: Path) -> list[Any]:
    return [
        record for _, record, _ in stream_source(find_source(str(file)), EmbeddedImageStore(row_cache() / "pictures"))
    ]


def _read(record: Any, key: SheetKey, patient_of: Mapping[str, str], place: str) -> tuple[_Place, list[str]]:
    missing = [name for name in COLUMNS if not isinstance(record, dict) or not isinstance(record.get(name), str)]
    if missing:
        remedy = "Use the file as it was downloaded."
        raise DataError(
            "imagegen.sheet_columns_missing",
            "a rating sheet's columns must exist",
            place=place,
            value=missing,
            remedy=remedy,
        )
    cells = {name: record[name] for name in COLUMNS}
    if cells["sheet"] != key.sheet or cells["image_path"] not in patient_of:
        found = f"{cells['image_path']} of sheet {cells['sheet']}"
        remedy = "Use the key that was written with the sheet."
        raise DataError(
            "imagegen.sheet_image_not_in_key",
            f"the image must be in the key of sheet {key.sheet}",
            place=place,
            value=found,
            remedy=remedy,
        )
    if not (cells["page"].isdecimal() and cells["position"].isdecimal()):
        value = (cells["page"], cells["position"])
        remedy = "Use the file as it was downloaded."
        raise DataError(
            "imagegen.sheet_position_not_whole",
            "page and position must be whole numbers",
            place=place,
            value=value,
            remedy=remedy,
        )
    shown = cells["rater_id"], int(cells["page"]), int(cells["position"])
    return shown, [*cells.values(), patient_of[cells["image_path"]]]
