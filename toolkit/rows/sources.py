"""What a source is, and its records as a stream: JSON, JSON lines, CSV, Parquet, folders of these, the Hub."""

import codecs
import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.errors import DataError
from toolkit.rows.hub import HUB, hub_files, stream_hub
from toolkit.rows.json_stream import Record, stream_json
from toolkit.rows.pictures import PictureStore, plain_rows

ARROW_ROWS = 256


@dataclass(frozen=True, slots=True)
class Source:
    """A source that is there: its name in messages, and the files it consists of."""

    name: str
    files: tuple[Path, ...]
    id_column: str | None = None
    """The column that names a row; None: the usual names are looked for."""

    @property
    def is_hub(self) -> bool:
        """Whether the rows come from a Hub data set."""
        return self.name.startswith(HUB)

    @property
    def place(self) -> str:
        """What stays the same when the content changes."""
        return self.name if self.is_hub else str(Path(self.name).expanduser().absolute())


def find_source(name: str, id_column: str | None = None, key: str = "[data]") -> Source:
    """Return the files behind a name of the recipe.

    Args:
        name: a file, a folder, or a Hub dataset.
        id_column: the column that names a row.
        key: the section or key of the recipe that has the name, for messages.

    Raises:
        DataError: nothing is there, or nothing of a kind that can be read.
    """
    if name.startswith(HUB):
        return Source(name, hub_files(name), id_column)
    path = Path(name).expanduser().absolute()
    if path.is_dir():
        files = tuple(file for file in sorted(path.iterdir()) if file.suffix.lower() in READERS and _is_shown(file))
        if not files:
            raise DataError(f"the folder holds no file of rows ({_KINDS})", place=path)
        return Source(name, files, id_column)
    if not path.is_file():
        raise DataError("the file of rows is not there", place=path, remedy=f"Correct the path in {key}.")
    if not os.access(path, os.R_OK):
        raise DataError("the file of rows must be readable", place=path, remedy="Change its permissions.")
    if path.suffix.lower() not in READERS:
        raise DataError(f"rows are read from {_KINDS}", place=path, value=path.suffix)
    return Source(name, (path,), id_column)


def stream_source(source: Source, pictures: PictureStore) -> Iterator[tuple[str, Any, str | None]]:
    """All records of a source; pictures that lie inside the rows go into ``pictures``.

    A record without an id gets its number, from 0; in a folder of several files ``file:number``.
    """
    columns = ID_COLUMNS if source.id_column is None else (source.id_column,)
    for prefix, records in _parts(source, pictures):
        for number, (name, row, text) in enumerate(records):
            yield (name if name is not None else _own_id(row, columns) or f"{prefix}{number}"), row, text


def _parts(source: Source, pictures: PictureStore) -> Iterator[tuple[str, Iterator[Record]]]:
    if source.is_hub:
        yield "", stream_hub(source.name, pictures)
    for file in () if source.is_hub else source.files:
        prefix = f"{file.stem}:" if len(source.files) > 1 else ""
        yield prefix, READERS[file.suffix.lower()](file, pictures)


def _own_id(row: Any, columns: tuple[str, ...]) -> str | None:
    if isinstance(row, dict):
        for column in columns:
            if (value := row.get(column)) is not None and value != "":
                return str(value)
    return None


ID_COLUMNS = ("id", "qid", "question_id", "uid")
"""Columns that name a row where the source is not an object id -> record."""


def _read_json(file: Path, _: PictureStore) -> Iterator[Record]:
    with file.open("rb") as stream:
        yield from stream_json(stream, str(file))


def _read_jsonl(file: Path, _: PictureStore) -> Iterator[Record]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if text := _decode(line, file, number).strip():
                yield None, _parse_line(text, file, number), text


def _decode(line: bytes, file: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError("the file must be UTF-8", place=f"{file}, line {number}", value=error.reason) from None


def _parse_line(text: str, file: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f"{file}, line {number:,}"
        raise DataError(f"each line must be one JSON record: {error}", place=place, value=text[:40]) from None


_SEPARATORS = (";", "\t", "|")


def _read_csv(file: Path, _: PictureStore) -> Iterator[Record]:
    """Every cell is text: a leading zero of an identifier stays."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, strict=True)
        try:
            header = _header(next(rows, []), file)
            for cells in rows:
                if cells:
                    yield None, _cells(header, cells, f"{file}, line {rows.line_num:,}"), None
        except UnicodeDecodeError as error:
            remedy = f"Convert it, for example with: iconv -f {_encoding(file)} -t UTF-8."
            raise DataError("the file must be UTF-8", place=file, value=error.reason, remedy=remedy) from None
        except csv.Error as error:
            raise DataError(f"the CSV is broken: {error}", place=f"{file}, line {rows.line_num:,}") from None


def _header(names: list[str], file: Path) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        rule = "the first line must name the columns, each once"
        raise DataError(rule, place=file, value=twice or names)
    if len(names) == 1 and (other := next((sign for sign in _SEPARATORS if sign in names[0]), None)):
        raise DataError("the columns of a CSV must be separated by commas", place=file, value=other)
    return names


def _encoding(file: Path) -> str:
    """What a file that is not UTF-8 probably is."""
    with file.open("rb") as stream:
        return "UTF-16" if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "LATIN1"


def _cells(header: list[str], cells: list[str], place: str) -> dict[str, str]:
    if len(cells) != len(header):
        rule = f"a row must have as many cells as the header ({len(header)})"
        raise DataError(rule, place=place, value=len(cells), remedy="Quote cells that hold a comma.")
    return dict(zip(header, cells, strict=True))


def _read_parquet(file: Path, pictures: PictureStore) -> Iterator[Record]:
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(ARROW_ROWS):
                for row in plain_rows(batch, pictures):
                    yield None, row, None
    except pa.ArrowInvalid as error:
        raise DataError(f"the Parquet file is broken: {error}", place=file) from None


READERS: dict[str, Callable[[Path, PictureStore], Iterator[Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
_KINDS = ", ".join(READERS)


def _is_shown(file: Path) -> bool:
    return file.is_file() and not file.name.startswith((".", "_"))
