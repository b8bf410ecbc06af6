"""Memory-mapped index of a source: an Arrow file of ids, row numbers and records, with its metadata as JSON beside it.

A source is parsed once. Each record is parsed again on access, so that RAM use does not grow with the number of rows.
"""

import dataclasses
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from toolkit.data.embedded_images import EmbeddedImageStore, not_writable
from toolkit.data.formats.hf_datasets import HUB
from toolkit.data.json_stream import Row
from toolkit.data.row_counts import MAX_EXAMPLES, RowCount, stored_counts, total
from toolkit.data.row_filter import NO_FILTER, Filter, RowFilter
from toolkit.data.sources import Source, find_source, parse_source, start_reading, stream_records
from toolkit.errors import DataError, list_problems
from toolkit.identifiers import described, open_private
from toolkit.runfolder.cache import cache_folder, make_cache_folder, mark_used
from toolkit.runfolder.files import remove_temporaries, write_text

FORMAT = "5"
"""Version of the index format. It is part of the file name."""

EDGE_BYTES = 1 << 16
"""Bytes at both ends of a file that are part of the index's key."""
EDGE_FILES = 1000
"""With more files, such as a folder of images, only their sizes and times are part of the key."""
BATCH_ROWS, BATCH_CHARS = 4096, 1 << 24
"""A record batch is written when it has this many rows or characters."""

AS_ROWS = 'Write one record for each row, as pandas does with to_json(orient="records").'
"""Remedy for a JSON object of columns."""

SCHEMA = pa.schema([("id", pa.large_string()), ("place", pa.large_string()), ("record", pa.large_string())])

MAX_COLUMNS = 10_000
"""Maximum number of columns of a source."""

OWN_INDEX = ".index"
"""Folder beside the rows that has their index, if the folder exists. Synthetic rows have one, so that their index is
removed with them."""

Visit = Callable[[int, str, Row, str], None]
"""Called with number, id, record and place of every row while an index is built."""


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
    """Places of the first repeated rows."""
    skipped: tuple[RowCount, ...]
    """Records that are not objects, or that their format cannot read."""
    noted: tuple[RowCount, ...]
    """Records with a warning of their format."""
    has_embedded_images: bool
    format: str
    """Name of the source's format."""
    filtered: str
    """Effect of the filter, such as ``4,919 of 9,835 rows have q_lang = en``. Empty without a filter."""


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
    def skipped(self) -> tuple[RowCount, ...]:
        """Records that are not in the index: they are not objects, or their format cannot read them."""
        return self.metadata.skipped

    @property
    def description(self) -> str:
        """Return source, format and number of rows, as in ``data/train.json: JSON, 1,200 rows``."""
        rows = self.metadata.filtered or f"{self.metadata.rows:,} {'row' if self.metadata.rows == 1 else 'rows'}"
        return f"{self.source}: {self.metadata.format}, {rows}"

    def __len__(self) -> int:
        return self.metadata.rows

    def __getitem__(self, number: int) -> tuple[str, Row]:
        name, record = (self._table.column(column)[number].as_py() for column in (0, 2))
        return name, json.loads(record)

    def place(self, number: int) -> str:
        """Return where the source has a row, such as ``row 12`` or ``b.jsonl, row 3``. Rows count from 0."""
        place: str = self._table.column(1)[number].as_py()
        return place

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for batch in self._table.to_batches():
            ids, records = (batch.column(column).to_pylist() for column in (0, 2))
            yield from zip(ids, map(json.loads, records), strict=True)

    def __reduce__(self) -> tuple[type["RowIndex"], tuple[object, ...]]:
        return RowIndex, (self.source, self.file, self.metadata, self.image_root)


def open_index(
    source: str,
    *,
    id_column: str | None = None,
    chosen: Filter = NO_FILTER,
    visit: Visit | None = None,
) -> RowIndex:
    """Return the index of a source. It is built in one pass if it is not in ``OWN_INDEX`` or ``row_cache()``.

    Args:
        source: A file or folder with one of the formats of ``toolkit.data.formats``, with an optional ``#split``, or
            ``hub:owner/name:configuration#split``.
        id_column: The column with the row id. Default: the keys of an object, otherwise id, qid, question_id or uid,
            otherwise the row number.
        chosen: Column -> values. Only rows with one of the values in each column are in the index.
        visit: Called with every row while the index is built. Not called if the index is cached.

    Raises:
        DataError: The source is missing, corrupt or empty, or the cache is not writable.
    """
    found = find_source(source, id_column)
    own = (source_folder(source) or Path()) / OWN_INDEX
    cache = own if own.is_dir() else row_cache()
    key = _source_key(found, chosen)
    file, images = cache / f"{key}.arrow", cache / "images"
    if (index := _open(found, file, images)) is not None:
        for one in (file, _metadata_file(file)):
            mark_used(one)
    else:
        _remove_older(cache, key)
        metadata = _build_index(found, file, _Build(EmbeddedImageStore(images), RowFilter(chosen), visit))
        index = RowIndex(source, file, metadata, _image_root(found, metadata, images))
    return index


def source_folder(source: str) -> Path | None:
    """Return the default folder of a source's image paths, or None for the Hub. Reads no rows."""
    if source.startswith(HUB):
        return None
    path = Path(parse_source(source)[0]).expanduser().absolute()
    return path if path.is_dir() else path.parent


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


@lru_cache
def code_digest(package: Path) -> bytes:
    """Return a digest of the Python files of a package. Rows that an earlier version read are not used again."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(package.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.digest()


def _source_key(source: Source, chosen: Filter) -> str:
    """Return ``location-content``, hashes of the location and of size, time and both ends of each file."""
    where, what = (hashlib.blake2b(digest_size=8) for _ in range(2))
    where.update(os.fsencode(source.location))
    what.update(code_digest(Path(__file__).parent))
    what.update(f"{FORMAT} {source.id_column} {source.title} {sorted(chosen.items())}".encode("utf-8", "surrogatepass"))
    files = source.files
    has_few_files = len(files) <= EDGE_FILES
    for file in files:
        status = file.stat()
        what.update(os.fsencode(f"{file} {status.st_size} {status.st_mtime_ns}"))
        with file.open("rb") if has_few_files else io.BytesIO() as stream:
            what.update(stream.read(EDGE_BYTES))
            stream.seek(max(0, status.st_size - EDGE_BYTES))
            what.update(stream.read(EDGE_BYTES))
    return f"{where.hexdigest()}-{what.hexdigest()}"


def _remove_older(cache: Path, key: str) -> None:
    """Remove indices of older content of the same source. Each is as large as the source."""
    for old in cache.glob(f"{key.partition('-')[0]}-*"):
        if not old.name.startswith(key):
            old.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Build:
    """What a pass over a source needs besides the source."""

    images: EmbeddedImageStore
    filter: RowFilter
    visit: Visit | None


def _build_index(source: Source, target: Path, build: _Build) -> IndexMetadata:
    """Write ``target`` and its metadata atomically, and return the metadata.

    Raises:
        DataError: The source is corrupt or has no record, or the disk is full.
    """
    temporary, metadata_file = target.with_name(f".{target.name}.{os.getpid()}.partial"), _metadata_file(target)
    try:
        make_cache_folder(target.parent)
        remove_temporaries(target)
        remove_temporaries(metadata_file)
        try:
            metadata = _write(source, temporary, build)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        write_text(metadata_file, json.dumps(dataclasses.asdict(metadata)), private=True)
    except OSError as error:
        raise not_writable(target, error) from error
    return metadata


def _read_metadata(target: Path) -> IndexMetadata | None:
    """Return the metadata of a complete index, or None if it is missing or corrupt."""
    try:
        stored = json.loads(_metadata_file(target).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    skipped, noted = (stored_counts(stored.pop(name)) for name in ("skipped", "noted"))
    stored |= {name: tuple(stored[name]) for name in ("columns", "duplicate_examples")}
    return IndexMetadata(**stored, skipped=skipped, noted=noted)


def _metadata_file(target: Path) -> Path:
    """Return the path of an index's metadata."""
    return target.with_suffix(".json")


def _write(source: Source, temporary: Path, build: _Build) -> IndexMetadata:
    columns: dict[str, None] = {}
    ids, reading = _Ids(), start_reading(source, build.images)
    skipped = reading.skipped
    number = 0
    with _Batches(temporary) as batches:
        for record, (name, row, text) in enumerate(stream_records(source, reading)):
            place = reading.at or f"record {record}"
            if not isinstance(row, dict):
                rule = "a record must be an object with named fields"
                skipped.add(
                    rule, place, "data.record_not_object", described(row), AS_ROWS if isinstance(row, list) else ""
                )
                continue
            if not row.keys() <= columns.keys():
                columns.update(dict.fromkeys(row))
                _check_columns(columns, f"{source.name}, {place}")
            if not build.filter.keeps(row):
                continue
            if reading.has_repeated_key(place, row, text):
                continue
            own = ids.unique(name, place)
            batches.add(own, place, text if text is not None else json.dumps(row))
            if build.visit is not None:
                build.visit(number, own, row, place)
            number += 1
    build.filter.check(source.name)
    for value in build.filter.missing:
        reading.notes.add("no row has the value of the filter", value, "data.filter_value_missing")
    if not number:
        raise _no_records(source.name, skipped.of(source.name))
    return IndexMetadata(
        rows=number,
        columns=tuple(columns),
        fingerprint=batches.digest.hexdigest(),
        duplicates=ids.duplicates,
        duplicate_examples=tuple(ids.examples),
        skipped=skipped.of(source.name),
        noted=reading.notes.of(source.name),
        has_embedded_images=build.images.used,
        format=source.title,
        filtered=build.filter.description,
    )


def _check_columns(columns: Collection[str], place: str) -> None:
    if len(columns) > MAX_COLUMNS:
        rule = f"the records of a source must have at most {MAX_COLUMNS:,} columns"
        remedy = "Store values in rows and not in columns, or in a list in one column."
        raise DataError("data.too_many_columns", rule, place=place, value=len(columns), remedy=remedy)


def _no_records(source: str, skipped: Sequence[RowCount]) -> DataError:
    """Return the error of a source without a usable record, with the reasons and their remedies."""
    if not skipped:
        rule, remedy = "the source must have at least one record", "Name another file in [data]."
        return DataError("data.no_records", rule, place=source, value="no record", remedy=remedy)
    reasons = list_problems(replace(one.notice(), place="") for one in skipped)
    rule, remedy = "at least one record must be usable", f"Correct the records, or name another source:\n{reasons}"
    return DataError("data.no_records", rule, place=source, value=f"0 of {total(skipped):,}", remedy=remedy)


class _Ids:
    """Makes ids unique and counts duplicates."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._again: Counter[str] = Counter()
        self.examples: list[str] = []

    @property
    def duplicates(self) -> int:
        return self._again.total()

    def unique(self, name: str, place: str) -> str:
        if name not in self._seen:
            self._seen.add(name)
            return name
        if len(self.examples) < MAX_EXAMPLES and name not in self._again:
            self.examples.append(place)
        self._again[name] += 1
        return self.unique(f"{name}#{self._again[name] + 1}", place)


class _Batches:
    """Writes record batches of an Arrow file when they are full, and hashes their content."""

    def __init__(self, file: Path) -> None:
        self._stream = os.fdopen(open_private(file), "wb")
        self._writer = pa.ipc.new_file(self._stream, SCHEMA)
        self._ids: list[str] = []
        self._places: list[str] = []
        self._records: list[str] = []
        self._chars = 0
        self.digest = hashlib.blake2b(digest_size=16)

    def __enter__(self) -> "_Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()
        self._stream.close()

    def add(self, name: str, place: str, record: str) -> None:
        self._ids.append(name)
        self._places.append(place)
        self._records.append(record)
        self._chars += len(record)
        if len(self._ids) == BATCH_ROWS or self._chars > BATCH_CHARS:
            self._flush()

    def _flush(self) -> None:
        ids, places, records = map(_texts, (self._ids, self._places, self._records))
        for array in (ids, records):
            self.digest.update(array.buffers()[2])
        self._writer.write_batch(pa.record_batch([ids, places, records], schema=SCHEMA))
        self._ids, self._places, self._records, self._chars = [], [], [], 0


def _texts(values: list[str]) -> pa.Array:
    try:
        return pa.array(values, pa.large_string())
    except UnicodeEncodeError:  # JSON can encode half a surrogate pair, UTF-8 cannot
        return pa.array([value.encode("utf-8", "backslashreplace").decode() for value in values], pa.large_string())
