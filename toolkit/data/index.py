"""Memory-mapped index of a source: an Arrow file of ids and records, with its metadata as JSON beside it.

A source is parsed once. Each record is parsed again on access, so that RAM use does not grow with the number of rows.
"""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.formats.hub import HUB
from toolkit.data.json_stream import Row
from toolkit.data.sources import Source, find_source, start_reading, stream_records
from toolkit.data.unusable_rows import MAX_EXAMPLES, Dropped, stored_dropped
from toolkit.errors import DataError
from toolkit.runfolder.cache import cache_folder

FORMAT = "3"
"""Version of the index format. It is part of the file name."""

EDGE_BYTES = 1 << 16
"""Bytes at both ends of a file that are part of the index's key."""
BATCH_ROWS, BATCH_CHARS = 4096, 1 << 24
"""A record batch is written when it has this many rows or characters."""

SCHEMA = pa.schema([("id", pa.large_string()), ("record", pa.large_string())])

Visit = Callable[[int, str, Row], None]
"""Called with number, id and record of every row while an index is built."""


@dataclass(frozen=True, slots=True)
class IndexMetadata:
    """Metadata of an index, stored beside it."""

    rows: int
    columns: tuple[str, ...]
    fingerprint: str
    """Hash of all ids and records, in order."""
    duplicates: int
    """Rows with the id of an earlier row. They are kept as ``id#2``, ``id#3``, …"""
    duplicate_examples: tuple[str, ...]
    skipped: tuple[Dropped, ...]
    """Records that are not objects, or that their format cannot read."""
    noted: tuple[Dropped, ...]
    """Records with a warning of their format."""
    has_embedded_images: bool
    format: str
    """Name of the source's format."""


class RowIndex:
    """Rows of one source. ``index[i]`` is ``(id, record)``. RAM use does not grow with the number of rows.

    Repeated ids have the suffixes ``#2``, ``#3``, …. Counts from the build are in ``metadata``. After unpickling, the
    file is mapped again.
    """

    def __init__(self, source: str, file: Path, metadata: IndexMetadata, image_root: Path | None) -> None:
        self.source, self.file, self.metadata, self.image_root = source, file, metadata, image_root
        self._table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        if len(self._table) != metadata.rows:
            raise pa.ArrowInvalid(f"{len(self._table)} rows where {metadata.rows} were written")

    @property
    def columns(self) -> tuple[str, ...]:
        """All fields, in order of first occurrence."""
        return self.metadata.columns

    @property
    def fingerprint(self) -> str:
        """Hash of all ids and records, in order."""
        return self.metadata.fingerprint

    @property
    def skipped(self) -> tuple[Dropped, ...]:
        """Records that are not in the index: they are not objects, or their format cannot read them."""
        return self.metadata.skipped

    @property
    def description(self) -> str:
        """Return source, format and number of rows, as in ``data/train.json: JSON, 1,200 rows``."""
        return f"{self.source}: {self.metadata.format}, {self.metadata.rows:,} rows"

    def __len__(self) -> int:
        return self.metadata.rows

    def __getitem__(self, number: int) -> tuple[str, Row]:
        name, record = (self._table.column(column)[number].as_py() for column in (0, 1))
        return name, json.loads(record)

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for batch in self._table.to_batches():
            ids, records = (column.to_pylist() for column in batch.columns)
            yield from zip(ids, map(json.loads, records), strict=True)

    def __reduce__(self) -> tuple[type["RowIndex"], tuple[object, ...]]:
        return RowIndex, (self.source, self.file, self.metadata, self.image_root)


def open_index(
    source: str, cache: Path | None = None, *, id_column: str | None = None, visit: Visit | None = None
) -> RowIndex:
    """Return the index of a source. It is built in one pass if it is not cached.

    Args:
        source: A .json (one object id -> record, or a list), .jsonl, .csv or .parquet file, a folder of them, or
            ``hub:owner/name#split``.
        cache: Folder of the indices. Default: ``row_cache()``.
        id_column: The column with the row id. Default: the keys of an object, otherwise id, qid, question_id or uid,
            otherwise the row number.
        visit: Called with every row while the index is built. Not called if the index is cached.

    Raises:
        DataError: The source is missing, corrupt or empty, or the cache is not writable.
    """
    found = find_source(source, id_column)
    cache = cache or row_cache()
    key = _source_key(found)
    file, images = cache / f"{key}.arrow", cache / "images"
    if (index := _open(found, file, images)) is None:
        _remove_older(cache, key)
        metadata = _build_index(found, file, EmbeddedImageStore(images), visit)
        index = RowIndex(source, file, metadata, _image_root(found, metadata, images))
    return index


def source_folder(source: str) -> Path | None:
    """Return the default folder of a source's image paths, or None for the Hub. Reads no rows."""
    path = Path(source).expanduser().absolute()
    return None if source.startswith(HUB) else path if path.is_dir() else path.parent


def row_cache() -> Path:
    """Return ``rows`` in the cache folder."""
    return cache_folder() / "rows"


def _open(source: Source, file: Path, images: Path) -> RowIndex | None:
    """Return a complete index, or None if it is missing or corrupt."""
    if (metadata := _read_metadata(file)) is None:
        return None
    try:
        return RowIndex(source.name, file, metadata, _image_root(source, metadata, images))
    except (OSError, pa.ArrowInvalid):
        return None


def _image_root(source: Source, metadata: IndexMetadata, images: Path) -> Path | None:
    return images if metadata.has_embedded_images else source_folder(source.name)


def _source_key(source: Source) -> str:
    """Return ``location-content``, hashes of the location and of size, time and both ends of each file."""
    where, what = (hashlib.blake2b(digest_size=8) for _ in range(2))
    where.update(source.location.encode())
    what.update(f"{FORMAT} {source.id_column}".encode())
    for file in source.files:
        status = file.stat()
        what.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
        with file.open("rb") as stream:
            what.update(stream.read(EDGE_BYTES))
            stream.seek(max(0, status.st_size - EDGE_BYTES))
            what.update(stream.read(EDGE_BYTES))
    return f"{where.hexdigest()}-{what.hexdigest()}"


def _remove_older(cache: Path, key: str) -> None:
    """Remove indices of older content of the same source. Each is as large as the source."""
    for old in cache.glob(f"{key.partition('-')[0]}-*"):
        if not old.name.startswith(key):
            old.unlink(missing_ok=True)


def _build_index(source: Source, target: Path, images: EmbeddedImageStore, visit: Visit | None) -> IndexMetadata:
    """Write ``target`` and its metadata atomically, and return the metadata.

    Raises:
        DataError: The source is corrupt or has no record, or the disk is full.
    """
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            metadata = _write(source, temporary, images, visit)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        _metadata_file(target).write_text(json.dumps(dataclasses.asdict(metadata)), encoding="utf-8")
    except OSError as error:
        rule = "the folder of the row index must be writable and have space for a copy of the rows"
        remedy = "Set the environment variable TOOLKIT_CACHE to another folder."
        raise DataError("data.index_not_writable", rule, place=target, value=str(error), remedy=remedy) from error
    return metadata


def _read_metadata(target: Path) -> IndexMetadata | None:
    """Return the metadata of a complete index, or None if it is missing or corrupt."""
    try:
        stored = json.loads(_metadata_file(target).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    skipped, noted = (stored_dropped(stored.pop(name)) for name in ("skipped", "noted"))
    stored |= {name: tuple(stored[name]) for name in ("columns", "duplicate_examples")}
    return IndexMetadata(**stored, skipped=skipped, noted=noted)


def _metadata_file(target: Path) -> Path:
    """Return the path of an index's metadata."""
    return target.with_suffix(".json")


def _write(source: Source, temporary: Path, images: EmbeddedImageStore, visit: Visit | None) -> IndexMetadata:
    columns: dict[str, None] = {}
    ids, reading = _Ids(), start_reading(source, images)
    skipped = reading.skipped
    number = 0
    with _Batches(temporary) as batches:
        for name, row, text in stream_records(source, reading):
            if not isinstance(row, dict):
                rule = "a record must be an object with named fields"
                skipped.add(rule, f"{name}: {json.dumps(row)[:40]}", "data.record_not_object")
                continue
            if not row.keys() <= columns.keys():
                columns.update(dict.fromkeys(row))
            own = ids.unique(name)
            batches.add(own, text if text is not None else json.dumps(row))
            if visit is not None:
                visit(number, own, row)
            number += 1
    if not number:
        rule = "the source must have at least one record that is an object with named fields"
        found = "; ".join(map(str, skipped.of(source.name))) or "no record"
        remedy = "Name another file in [data]."
        raise DataError("data.no_records", rule, place=source.name, value=found, remedy=remedy)
    return IndexMetadata(
        rows=number,
        columns=tuple(columns),
        fingerprint=batches.digest.hexdigest(),
        duplicates=ids.duplicates,
        duplicate_examples=tuple(ids.examples),
        skipped=skipped.of(source.name),
        noted=reading.notes.of(source.name),
        has_embedded_images=images.used,
        format=source.title,
    )


class _Ids:
    """Makes ids unique and counts duplicates."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._again: Counter[str] = Counter()
        self.examples: list[str] = []

    @property
    def duplicates(self) -> int:
        return self._again.total()

    def unique(self, name: str) -> str:
        if name not in self._seen:
            self._seen.add(name)
            return name
        if len(self.examples) < MAX_EXAMPLES and name not in self._again:
            self.examples.append(name)
        self._again[name] += 1
        return self.unique(f"{name}#{self._again[name] + 1}")


class _Batches:
    """Writes record batches of an Arrow file when they are full, and hashes their content."""

    def __init__(self, file: Path) -> None:
        self._writer = pa.ipc.new_file(str(file), SCHEMA)
        self._ids: list[str] = []
        self._records: list[str] = []
        self._chars = 0
        self.digest = hashlib.blake2b(digest_size=16)

    def __enter__(self) -> "_Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, name: str, record: str) -> None:
        self._ids.append(name)
        self._records.append(record)
        self._chars += len(record)
        if len(self._ids) == BATCH_ROWS or self._chars > BATCH_CHARS:
            self._flush()

    def _flush(self) -> None:
        arrays = [_texts(self._ids), _texts(self._records)]
        for array in arrays:
            self.digest.update(array.buffers()[2])
        self._writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
        self._ids, self._records, self._chars = [], [], 0


def _texts(values: list[str]) -> pa.Array:
    try:
        return pa.array(values, pa.large_string())
    except UnicodeEncodeError:  # JSON can encode half a surrogate pair, UTF-8 cannot
        return pa.array([value.encode("utf-8", "backslashreplace").decode() for value in values], pa.large_string())
