"""Memory-mapped index of a source. Each record is parsed on access."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from toolkit.data.build_index import IndexMetadata, Visit, build_index, read_metadata
from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.hub import HUB
from toolkit.data.sources import Source, find_source
from toolkit.data.unusable_rows import Dropped
from toolkit.runfolder.cache import cache_folder

FORMAT = "2"
"""Version of the index format. It is part of the file name."""
EDGE_BYTES = 1 << 16


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
        """Records that are not objects and are not in the index."""
        return self.metadata.skipped

    def __len__(self) -> int:
        return self.metadata.rows

    def __getitem__(self, number: int) -> tuple[str, Mapping[str, Any]]:
        name, record = (self._table.column(column)[number].as_py() for column in (0, 1))
        return name, json.loads(record)

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
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
        metadata = build_index(found, file, EmbeddedImageStore(images), visit)
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
    if (metadata := read_metadata(file)) is None:
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
