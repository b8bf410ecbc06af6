"""The index over a source: opened by memory map, one record parsed when it is requested."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from toolkit.data.build_index import Facts, Visit, build_index, read_facts
from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.hub import HUB
from toolkit.data.sources import Source, find_source
from toolkit.data.unusable_rows import Dropped
from toolkit.runfolder.cache import cache_folder

FORMAT = "1"
"""Part of every index's name: another format is another file."""
EDGE_BYTES = 1 << 16


class RowIndex:
    """Rows of one source. ``index[i]`` is ``(id, record)``. Memory does not grow with the number of rows.

    Equal ids were told apart by ``#2``, ``#3``, …. What was counted while the index was built is in ``facts``.
    Can be pickled: the file is mapped again on the other side.
    """

    def __init__(self, source: str, file: Path, facts: Facts, image_root: Path | None) -> None:
        self.source, self.file, self.facts, self.image_root = source, file, facts, image_root
        self._table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        if len(self._table) != facts.rows:
            raise pa.ArrowInvalid(f"{len(self._table)} rows where {facts.rows} were written")

    @property
    def columns(self) -> tuple[str, ...]:
        """All fields that occur, in the order of their first row."""
        return self.facts.columns

    @property
    def fingerprint(self) -> str:
        """Hash of all ids and records, in their order."""
        return self.facts.fingerprint

    @property
    def skipped(self) -> tuple[Dropped, ...]:
        """Records that are no rows at all, which the index leaves out."""
        return self.facts.skipped

    def __len__(self) -> int:
        return self.facts.rows

    def __getitem__(self, number: int) -> tuple[str, Mapping[str, Any]]:
        name, record = (self._table.column(column)[number].as_py() for column in (0, 1))
        return name, json.loads(record)

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for batch in self._table.to_batches():
            ids, records = (column.to_pylist() for column in batch.columns)
            yield from zip(ids, map(json.loads, records), strict=True)

    def __reduce__(self) -> tuple[type["RowIndex"], tuple[object, ...]]:
        return RowIndex, (self.source, self.file, self.facts, self.image_root)


def open_index(
    source: str, cache: Path | None = None, *, id_column: str | None = None, visit: Visit | None = None
) -> RowIndex:
    """Return the index over a source, built in one pass when it is not in the cache.

    Args:
        source: a .json (one object id -> record, or a list), .jsonl, .csv or .parquet file, a folder of them, or
            ``hub:owner/name#split``.
        cache: where indices are kept. Default: ``row_cache()``.
        id_column: the column that names a row. Default: the keys of an object, else id, qid, question_id or uid, else
            the row's number.
        visit: called with every row while the index is built, and not at all when it is only opened.

    Raises:
        DataError: the source is missing, broken or empty, or the cache cannot be written.
    """
    found = find_source(source, id_column)
    cache = cache or row_cache()
    key = _source_key(found)
    file, images = cache / f"{key}.arrow", cache / "pictures"
    if (index := _open(found, file, images)) is None:
        _forget_older(cache, key)
        facts = build_index(found, file, EmbeddedImageStore(images), visit)
        index = RowIndex(source, file, facts, _image_root(found, facts, images))
    return index


def source_folder(source: str) -> Path | None:
    """Return the folder that a source's image paths start from by default; None for the Hub. Reads no rows."""
    path = Path(source).expanduser().absolute()
    return None if source.startswith(HUB) else path if path.is_dir() else path.parent


def row_cache() -> Path:
    """``rows`` in the cache folder."""
    return cache_folder() / "rows"


def _open(source: Source, file: Path, images: Path) -> RowIndex | None:
    """Return an index that is complete; None if it is missing or was damaged."""
    if (facts := read_facts(file)) is None:
        return None
    try:
        return RowIndex(source.name, file, facts, _image_root(source, facts, images))
    except (OSError, pa.ArrowInvalid):
        return None


def _image_root(source: Source, facts: Facts, images: Path) -> Path | None:
    return images if facts.has_embedded_images else source_folder(source.name)


def _source_key(source: Source) -> str:
    """``where-what``: the hash of the place, and of size, time and both ends of each file."""
    where, what = (hashlib.blake2b(digest_size=8) for _ in range(2))
    where.update(source.place.encode())
    what.update(f"{FORMAT} {source.id_column}".encode())
    for file in source.files:
        status = file.stat()
        what.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
        with file.open("rb") as stream:
            what.update(stream.read(EDGE_BYTES))
            stream.seek(max(0, status.st_size - EDGE_BYTES))
            what.update(stream.read(EDGE_BYTES))
    return f"{where.hexdigest()}-{what.hexdigest()}"


def _forget_older(cache: Path, key: str) -> None:
    """Removes indices of the same place with older content: each is as large as its source."""
    for old in cache.glob(f"{key.partition('-')[0]}-*"):
        if not old.name.startswith(key):
            old.unlink(missing_ok=True)
