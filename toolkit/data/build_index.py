"""Write the index of a source: a memory-mappable Arrow file of ids and records, and its metadata as JSON."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.sources import Source, stream_source
from toolkit.data.unusable_rows import MAX_EXAMPLES, Dropped, Tally, stored_dropped
from toolkit.errors import DataError

BATCH_ROWS = 4096
BATCH_CHARS = 1 << 24
SCHEMA = pa.schema([("id", pa.large_string()), ("record", pa.large_string())])

Visit = Callable[[int, str, Mapping[str, Any]], None]
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
    """Records that are not objects."""
    has_embedded_images: bool


def build_index(source: Source, target: Path, images: EmbeddedImageStore, visit: Visit | None) -> IndexMetadata:
    """Write ``target`` and its metadata atomically, and return the metadata.

    Raises:
        DataError: The source is corrupt or has no record, or the disk is full.
    """
    aside = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            metadata = _write(source, aside, images, visit)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
        metadata_file(target).write_text(json.dumps(dataclasses.asdict(metadata)), encoding="utf-8")
    except OSError as error:
        rule = "the folder of the row index must be writable and have room for a copy of the rows"
        remedy = "Set the environment variable TOOLKIT_CACHE to another folder."
        raise DataError("data.index_not_writable", rule, place=target, value=str(error), remedy=remedy) from error
    return metadata


def read_metadata(target: Path) -> IndexMetadata | None:
    """Return the metadata of a complete index, or None if it is missing or corrupt."""
    try:
        stored = json.loads(metadata_file(target).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    skipped = stored_dropped(stored.pop("skipped"))
    stored |= {name: tuple(stored[name]) for name in ("columns", "duplicate_examples")}
    return IndexMetadata(**stored, skipped=skipped)


def metadata_file(target: Path) -> Path:
    """Return the path of an index's metadata."""
    return target.with_suffix(".json")


def _write(source: Source, aside: Path, images: EmbeddedImageStore, visit: Visit | None) -> IndexMetadata:
    columns: dict[str, None] = {}
    ids, skipped = _Ids(), Tally()
    number = 0
    with _Batches(aside) as batches:
        for name, row, text in stream_source(source, images):
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
        has_embedded_images=images.used,
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
