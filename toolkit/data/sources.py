"""Sources and their records as a stream: JSON, JSON lines, CSV, Parquet, folders of these, and the Hub.

A Hub dataset is ``hub:owner/name`` with an optional ``#split``. Images embedded in a table are written to files.
"""

import codecs
import csv
import datetime
import decimal
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.data.json_stream import Record, stream_json
from toolkit.errors import DataError

HUB = "hub:"
ARROW_ROWS = 256
"""Rows of a table that are in RAM together. Each can have embedded images."""

ID_COLUMNS = ("id", "qid", "question_id", "uid")
"""Columns with the row id if the source is not an object id -> record."""

_SEPARATORS = (";", "\t", "|")

_NOT_UTF8 = ("data.not_utf8", "the file must be UTF-8")

_CONVERT = "Convert it, for example with: iconv -f {} -t UTF-8."

_NAME = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(?:#(?P<split>[\w.\[\]:%-]+))?")

_MAGIC = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """An existing source: its name in messages and its files."""

    name: str
    files: tuple[Path, ...]
    id_column: str | None = None
    """The column with the row id. None means the usual names."""

    @property
    def is_hub(self) -> bool:
        """Whether the rows come from a Hub dataset."""
        return self.name.startswith(HUB)

    @property
    def location(self) -> str:
        """Name or absolute path, independent of the content."""
        return self.name if self.is_hub else str(Path(self.name).expanduser().absolute())


class EmbeddedImageStore:
    """A folder of images named by content hash. ``used`` says whether the source has embedded images."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.used = folder, False

    def keep(self, content: bytes) -> str:
        """Write an image and return its path in the folder. Equal content has the same name in every source."""
        self.used = True
        name = hashlib.blake2b(content, digest_size=20).hexdigest()
        inside = f"{name[:2]}/{name}{_suffix(content)}"
        file = self.folder / inside
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f"{file.name}.{os.getpid()}")
            temporary.write_bytes(content)
            temporary.replace(file)
        return inside


def find_source(name: str, id_column: str | None = None, key: str = "[data]") -> Source:
    """Return the source that a name in the recipe refers to.

    Args:
        name: A file, a folder, or a Hub dataset.
        id_column: The column with the row id.
        key: Section or key of the recipe, for error messages.

    Raises:
        DataError: The source does not exist or has no supported format.
    """
    if name.startswith(HUB):
        return Source(name, _hub_files(name), id_column)
    path = Path(name).expanduser().absolute()
    if path.is_dir():
        files = tuple(file for file in sorted(path.iterdir()) if file.suffix.lower() in READERS and _is_shown(file))
        if not files:
            rule = f"the folder must have a file of rows ({_KINDS})"
            raise DataError("data.folder_without_rows", rule, place=path, remedy="Name another folder in [data].")
        return Source(name, files, id_column)
    if not path.is_file():
        rule = "the file of rows must exist"
        raise DataError("data.file_missing", rule, place=path, remedy=f"Correct the path in {key}.")
    if not os.access(path, os.R_OK):
        rule = "the file of rows must be readable"
        raise DataError("data.file_not_readable", rule, place=path, remedy="Change its permissions.")
    if path.suffix.lower() not in READERS:
        rule, remedy = f"a file of rows must be one of {_KINDS}", "Convert the file."
        raise DataError("data.file_type_unknown", rule, place=path, value=path.suffix, remedy=remedy)
    return Source(name, (path,), id_column)


def stream_source(source: Source, images: EmbeddedImageStore) -> Iterator[tuple[str, Any, str | None]]:
    """Yield all records of a source. Embedded images are written to ``images``.

    A record without an id gets its number, from 0. In a folder with several files, it gets ``file:number``.
    """
    columns = ID_COLUMNS if source.id_column is None else (source.id_column,)
    for prefix, records in _parts(source, images):
        for number, (name, row, text) in enumerate(records):
            yield (name if name is not None else _own_id(row, columns) or f"{prefix}{number}"), row, text


def _parts(source: Source, images: EmbeddedImageStore) -> Iterator[tuple[str, Iterator[Record]]]:
    if source.is_hub:
        yield "", _stream_hub(source.name, images)
    for file in () if source.is_hub else source.files:
        prefix = f"{file.stem}:" if len(source.files) > 1 else ""
        yield prefix, READERS[file.suffix.lower()](file, images)


def _own_id(row: Any, columns: tuple[str, ...]) -> str | None:
    if isinstance(row, dict):
        for column in columns:
            if (value := row.get(column)) is not None and value != "":
                return str(value)
    return None


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
                for row in _plain_rows(batch, images):
                    yield None, row, None
    except pa.ArrowInvalid as error:
        rule = f"the Parquet file must be valid: {error}"
        raise DataError("data.parquet_invalid", rule, place=file, remedy="Copy the file again.") from None


def _hub_files(source: str) -> tuple[Path, ...]:
    """Return the Arrow files of the dataset in the local cache, after a download if needed.

    Raises:
        DataError: The name is malformed, the dataset or split does not exist, or the Hub is not reachable.
    """
    return tuple(Path(file["filename"]) for file in _load_hub(source).cache_files)


def _stream_hub(source: str, images: EmbeddedImageStore) -> Iterator[Record]:
    """Yield all rows, without an id."""
    for table in _load_hub(source).with_format("arrow").iter(batch_size=ARROW_ROWS):
        for row in _plain_rows(table, images):
            yield None, row, None


def _load_hub(source: str) -> Any:
    found = _NAME.fullmatch(source)
    if found is None:
        rule = "the name of a Hub dataset must be hub:owner/name or hub:owner/name#split"
        raise DataError("data.hub_name_malformed", rule, value=source, remedy="Correct the name.")
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(found["name"], split=found["split"] or "train")
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            "data.hub_not_loaded",
            "the Hub dataset must be available",
            place=source,
            value=reason,
            remedy="Check name, split and network (HF_HUB_OFFLINE), or name a local file.",
        ) from error


def _plain_rows(batch: pa.RecordBatch | pa.Table, images: EmbeddedImageStore) -> Iterator[dict[str, Any]]:
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


def _suffix(content: bytes) -> str:
    if content[128:132] == b"DICM":
        return ".dcm"
    return next((suffix for magic, suffix in _MAGIC if content.startswith(magic)), "")


READERS: dict[str, Callable[[Path, EmbeddedImageStore], Iterator[Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}

_KINDS = ", ".join(READERS)


def _is_shown(file: Path) -> bool:
    return file.is_file() and not file.name.startswith((".", "_"))
