"""Files of rows: JSON, JSON lines, CSV and Parquet, streamed record by record."""

import codecs
import csv
import datetime
import decimal
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.json_stream import Record, stream_json
from toolkit.errors import DataError

ARROW_ROWS = 256
"""Rows of a table that are in RAM together. Each can have embedded images."""

_SEPARATORS = (";", "\t", "|")

_NOT_UTF8 = ("data.not_utf8", "the file must be UTF-8")

_CONVERT = "Convert it, for example with: iconv -f {} -t UTF-8."


def _read_json(file: Path, _: EmbeddedImageStore) -> Iterator[Record]:
    with file.open("rb") as stream:
        yield from stream_json(stream, str(file))


def _read_jsonl(file: Path, _: EmbeddedImageStore) -> Iterator[Record]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if text := _decode(line, file, number).strip():
                yield None, _parse_line(text, file, number), text


def _decode(line: bytes, file: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        place, remedy = f"{file}, line {number}", _CONVERT.format("LATIN1")
        raise DataError(*_NOT_UTF8, place=place, value=error.reason, remedy=remedy) from None


def _parse_line(text: str, file: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f"{file}, line {number:,}"
        rule, remedy = f"each line must be one JSON record: {error}", "Correct the line."
        raise DataError("data.json_line_invalid", rule, place=place, value=text[:40], remedy=remedy) from None


def _read_csv(file: Path, _: EmbeddedImageStore) -> Iterator[Record]:
    """Read all cells as text, so that identifiers keep leading zeros."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, strict=True)
        try:
            header = _header(next(rows, []), file)
            for cells in rows:
                if cells:
                    yield None, _cells(header, cells, f"{file}, line {rows.line_num:,}"), None
        except UnicodeDecodeError as error:
            remedy = _CONVERT.format(_encoding(file))
            raise DataError(*_NOT_UTF8, place=file, value=error.reason, remedy=remedy) from None
        except csv.Error as error:
            rule, place = f"the CSV must be valid: {error}", f"{file}, line {rows.line_num:,}"
            raise DataError("data.csv_invalid", rule, place=place, remedy="Correct the file.") from None


def _header(names: list[str], file: Path) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        rule, remedy = "the first line must name the columns, each once", "Correct the first line."
        raise DataError("data.csv_header_invalid", rule, place=file, value=twice or names, remedy=remedy)
    if len(names) == 1 and (other := next((sign for sign in _SEPARATORS if sign in names[0]), None)):
        rule, remedy = "the columns of a CSV must be separated by commas", "Convert the file."
        raise DataError("data.csv_separator", rule, place=file, value=other, remedy=remedy)
    return names


def _encoding(file: Path) -> str:
    """Return the likely encoding of a file that is not UTF-8."""
    with file.open("rb") as stream:
        return "UTF-16" if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "LATIN1"


def _cells(header: list[str], cells: list[str], place: str) -> dict[str, str]:
    if len(cells) != len(header):
        rule = f"a row must have as many cells as the header ({len(header)})"
        remedy = "Put cells that have a comma in quotation marks."
        raise DataError("data.csv_cell_count", rule, place=place, value=len(cells), remedy=remedy)
    return dict(zip(header, cells, strict=True))


def _read_parquet(file: Path, images: EmbeddedImageStore) -> Iterator[Record]:
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(ARROW_ROWS):
                for row in plain_rows(batch, images):
                    yield None, row, None
    except pa.ArrowInvalid as error:
        rule = f"the Parquet file must be valid: {error}"
        raise DataError("data.parquet_invalid", rule, place=file, remedy="Copy the file again.") from None


def plain_rows(batch: pa.RecordBatch | pa.Table, images: EmbeddedImageStore) -> Iterator[dict[str, Any]]:
    """Yield rows with JSON values.

    An embedded image (bytes, or a struct with ``bytes`` and ``path`` as in Hub datasets) is kept in ``images`` and
    replaced by its path in that folder.
    """
    for row in batch.to_pylist():
        yield {name: _plain(value, images) for name, value in row.items()}


def _plain(value: Any, images: EmbeddedImageStore) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return images.keep(value)
    if isinstance(value, dict):
        if set(value) == {"bytes", "path"}:
            return value["path"] if value["bytes"] is None else images.keep(value["bytes"])
        return {name: _plain(item, images) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, images) for item in value]
    if isinstance(value, datetime.date | datetime.time | decimal.Decimal):
        return str(value)
    return repr(value)


READERS: dict[str, Callable[[Path, EmbeddedImageStore], Iterator[Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
