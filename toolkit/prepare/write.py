"""Rows as JSON, CSV and Parquet, staged in a folder that replaces the old files at the end."""

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.recipe import SPLITS

Row = Mapping[str, Any]

STAGING_PREFIX = ".prepare-"

_BOX = pa.list_(pa.int32())
TYPES: Mapping[str, pa.DataType] = {
    "age": pa.float64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "bbox": _BOX,
    "boxes": pa.list_(_BOX),
    "polygons": pa.list_(pa.list_(_BOX)),
    "area_share": pa.float64(),
    "mask_available": pa.bool_(),
    "features": pa.list_(pa.string()),
    "concerning_features": pa.list_(pa.string()),
    "confidence": pa.float64(),
}
"""Columns with a type other than string in Parquet."""


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Open a hidden folder whose files move to ``folder`` if the block succeeds, and are removed otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{STAGING_PREFIX}*"):  # left by a killed process
        shutil.rmtree(old, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=folder))
    try:
        yield aside
        files = sorted(aside.iterdir())
        for file in files:
            _sync(file)
        for file in files:
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_rows(folder: Path, name: str, rows: Sequence[Row]) -> None:
    """Write ``name`` as .json (a list, one row per line), .csv and .parquet, and each split as .json.

    A split without rows has no file. In the CSV, missing values are empty cells and lists are JSON.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    _write_json(folder / f"{name}.json", rows)
    _write_csv(folder / f"{name}.csv", columns, rows)
    _write_parquet(folder / f"{name}.parquet", columns, rows)
    for split in SPLITS:
        if chosen := [row for row in rows if row["split"] == split]:
            _write_json(folder / f"{split}.json", chosen)


def _write_json(file: Path, rows: Sequence[Row]) -> None:
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")


def _write_csv(file: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(columns)
        table.writerows([_cell(row.get(column)) for column in columns] for row in rows)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write_parquet(file: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    schema = pa.schema([(column, TYPES.get(column, pa.string())) for column in columns])
    pq.write_table(pa.Table.from_pylist(list(rows), schema), file)


def _sync(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
