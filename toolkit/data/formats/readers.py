"""Files of rows: JSON, JSON lines, tables of text and Parquet, streamed record by record."""

import datetime
import decimal
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.data.embedded_images import EmbeddedImageStore, is_image
from toolkit.data.formats.class_labels import class_names, with_names
from toolkit.data.formats.row_file import RowFile
from toolkit.data.formats.split_names import split_of
from toolkit.data.formats.tables import NOT_UTF8, read_table
from toolkit.data.json_stream import Record, around, conversion, peek_members, stream_json, stream_members
from toolkit.errors import DataError
from toolkit.identifiers import masked, shown_cell, without_names

ARROW_ROWS = 256
"""Rows of a table that are in RAM together. Each can have embedded images."""

_SHORT_FLOATS: Mapping[pa.DataType, Callable[[float], np.floating[Any]]] = {
    pa.float16(): np.float16,
    pa.float32(): np.float32,
}

PEEK_BYTES = 1 << 20
"""Bytes at the start of a file that determine its layout."""


def json_kind(file: RowFile) -> str:
    """Return the layout of a JSON file by its content: ``lines``, ``list``, ``splits`` or ``object``.

    Raises:
        DataError: The file is UTF-16 without a byte order mark.
    """
    text = peek_text(file)
    if "\0" in text[:2]:
        raise DataError(*NOT_UTF8, place=file.place, value=masked(text[:20]), remedy=conversion(file.head(4)))
    start = text.lstrip(" \t\r\n")
    if not start.startswith("{"):
        return "lines" if file.suffix != ".json" and not start.startswith("[") else "list"
    return "lines" if _has_lines(start, file) else "splits" if json_splits(text) else "object"


def peek_text(file: RowFile) -> str:
    """Return the first MB of a file as text."""
    return file.head(PEEK_BYTES).decode("utf-8", "ignore").removeprefix("\ufeff")


def json_splits(text: str) -> bool:
    """Return whether the start of a JSON text is an object of splits: split -> list of records.

    >>> json_splits('{"train": [{"id": 1}], "val": ['), json_splits('{"train": {"id": 1}}')
    (True, False)
    """
    members = peek_members(text)
    splits = [name for name, value in members.items() if split_of(name) and isinstance(value, list)]
    return bool(splits) and not any(isinstance(members[name], list | dict) for name in members if name not in splits)


def _has_lines(text: str, file: RowFile) -> bool:
    """Return whether each line is a record: the first value ends on the first line, and another one can follow."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text) - 1 or error.msg.startswith("Unterminated")
        return file.suffix != ".json" and not ("\n" in text[: error.pos] and is_cut)
    except (ValueError, RecursionError):
        return file.suffix != ".json"
    if "\n" in text[:end]:
        return False
    return text[end:].lstrip().startswith("{") or file.suffix != ".json"


def read_rows(file: RowFile, images: EmbeddedImageStore) -> Iterator[Record]:
    """Yield the records of a file of rows.

    Raises:
        DataError: The file is invalid. The error has file, line or column, and the value.
    """
    yield from _READERS[file.suffix](file, images)


def read_split(file: RowFile, split: str | None) -> Iterator[Record]:
    """Yield the records of a JSON object of splits, of one split or of all of them."""
    with file.open() as stream:
        for key, value, text, _ in stream_members(stream, file.place):
            if split_of(key) is None and isinstance(value, dict | list):
                rule = "a JSON object of splits must have no list or object beside its splits"
                remedy = "Remove it, or name it train, validation or test."
                raise DataError(
                    "data.json_list_beside_splits", rule, place=file.place, value=shown_cell(key), remedy=remedy
                )
            if split_of(key) is not None and split in (None, key):
                yield None, value, text


def lists_of_objects(file: RowFile) -> list[str]:
    """Return the keys of a JSON object whose values are lists of objects, from the start of the file."""
    members = peek_members(peek_text(file))
    return [key for key, one in members.items() if isinstance(one, list) and one and isinstance(one[0], dict)]


def read_list(file: RowFile, wanted: str) -> Iterator[Record]:
    """Yield the records of the only list of objects in a JSON object.

    Raises:
        DataError: There is another list of objects, so that it is not certain which one has the rows.
    """
    with file.open() as stream:
        for key, value, text, is_element in stream_members(stream, file.place):
            if key == wanted:
                yield None, value, text
            elif is_element and isinstance(value, dict):
                rule = "a JSON object must have one list of objects, which are its rows"
                remedy = "Remove the other list, or write each list to a file of its own."
                raise DataError(
                    "data.json_several_lists",
                    rule,
                    place=file.place,
                    value=[shown_cell(one) for one in (wanted, key)],
                    remedy=remedy,
                )


def splits_of_object(file: RowFile) -> tuple[str, ...]:
    """Return the names of the splits of a JSON object of splits, in a pass over the whole file."""
    status = file.path.stat()
    return _splits_of(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _splits_of(file: RowFile, size: int, time: int) -> tuple[str, ...]:
    """Return the splits of a file of this size and time."""
    with file.open() as stream:
        return tuple(dict.fromkeys(key for key, *_ in stream_members(stream, file.place) if split_of(key)))


def _read_json(file: RowFile, _: EmbeddedImageStore) -> Iterator[Record]:
    kind = json_kind(file)
    if kind == "splits":
        yield from read_split(file, None)
        return
    with file.open() as stream:
        yield from _read_lines(stream, file.place) if kind == "lines" else stream_json(stream, file.place)


def _read_lines(stream: BinaryIO, place: str) -> Iterator[Record]:
    for number, line in enumerate(stream, start=1):
        if text := _decode(line, place, number).strip():
            yield None, _parse_line(text, place, number), text


def _decode(line: bytes, place: str, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        at, remedy = f"{place}, line {number:,}", conversion(line)
        raise DataError(*NOT_UTF8, place=at, value=around(error), remedy=remedy) from None


def _parse_line(text: str, place: str, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        at = f"{place}, line {number:,}"
        rule, remedy = f"each line must be one JSON record: {error}", "Correct the line."
        raise DataError("data.json_line_invalid", rule, place=at, value=masked(text[:40]), remedy=remedy) from None


def _read_parquet(file: RowFile, images: EmbeddedImageStore) -> Iterator[Record]:
    try:
        with pq.ParquetFile(file.path) as table:
            names = class_names(table.schema_arrow.metadata)
            _check_names(table.schema_arrow.names, file)
            for batch in table.iter_batches(ARROW_ROWS):
                for row in plain_rows(batch, images, names):
                    yield None, row, None
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:  # a map with a key twice: KeyError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        rule, remedy = "the Parquet file must be valid", "Copy or download the file again."
        raise DataError(
            "data.parquet_invalid", rule, place=file.place, value=without_names(reason), remedy=remedy
        ) from None


def _check_names(names: list[str], file: RowFile) -> None:
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        rule, remedy = "the file must have each column once", "Rename or remove the repeated columns."
        raise DataError(
            "data.column_repeated", rule, place=file.place, value=[shown_cell(one) for one in twice], remedy=remedy
        )


def plain_rows(
    batch: pa.RecordBatch | pa.Table, images: EmbeddedImageStore, names: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield rows with JSON values.

    An embedded image (bytes, or a struct with ``bytes`` and ``path`` as in Hub datasets) is kept in ``images`` and
    replaced by its path in that folder. Other bytes, such as a checksum, become an object, which is no text. ``names``
    are the class names of columns with numbers of classes. Numbers of 32 bits keep their digits: 0.1 does not become
    0.10000000149011612.
    """
    short = {field.name: kind for field in batch.schema if (kind := _SHORT_FLOATS.get(field.type)) is not None}
    for row in batch.to_pylist(maps_as_pydicts="strict"):
        row |= {name: float(str(kind(row[name]))) for name, kind in short.items() if row[name] is not None}
        yield {name: _plain(with_names(value, names.get(name)), images) for name, value in row.items()}


def _plain(value: Any, images: EmbeddedImageStore) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return images.keep(value) if is_image(value) else {"hex": value.hex()}
    if isinstance(value, dict):
        if "bytes" in value and value.keys() <= {"bytes", "path"} and isinstance(value["bytes"], bytes | None):
            return value.get("path") if value["bytes"] is None else images.keep(value["bytes"])
        return {name: _plain(item, images) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, images) for item in value]
    if isinstance(value, datetime.date | datetime.time | decimal.Decimal):
        return str(value)
    return {type(value).__name__: repr(value)}  # a duration, for example, has no text that is certain


_READERS: dict[str, Callable[[RowFile, EmbeddedImageStore], Iterator[Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".csv": read_table,
    ".tsv": read_table,
    ".txt": read_table,
    ".parquet": _read_parquet,
}
