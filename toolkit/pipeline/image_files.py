"""The image files of a run: size, time and digest of each, so that a later session reports a changed image.

The fingerprint of the rows has the names of images, but not their content.
"""

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from toolkit.data.sample_set import SampleSet
from toolkit.errors import RunError, warn
from toolkit.identifiers import FILE as IDENTIFIERS
from toolkit.identifiers import hidden_id, open_private
from toolkit.runfolder import RunFolder, replace_file

FILE = "images.parquet"
"""Name of the file in the folder of the stage ``data``."""

WHOLE_BYTES, EDGE_BYTES = 8 * 2**20, 2**17
"""Bytes of a digest after a full scan and after another one. Of a larger file, only its beginning and end are read."""

SHOWN = 5

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("split", "name", "path")),
        *((name, pa.int64()) for name in ("size", "time")),
        ("digest", pa.string()),
        ("digest_bytes", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file: its split, its name below the image root, where it was, its size, and its time of change in ns.

    ``digest`` is that of at most ``digest_bytes`` bytes.
    """

    split: str
    name: str
    path: str
    size: int
    time: int
    digest: str
    digest_bytes: int


def check_image_files(run: RunFolder, splits: Mapping[str, SampleSet], *, full: bool) -> None:
    """Store the files of all images of these splits, or check that their content is that of an earlier session.

    A file with the size and time of the earlier session is not read again.

    Args:
        run: a started run.
        splits: the splits whose images the run uses.
        full: whether the scan decoded the images, so that reading their files again costs little.

    Raises:
        RunError: an image changed, or a row means another file now.
    """
    file = run.stage_folder("data") / FILE
    known = {(one.split, one.name): one for one in _read(file)}
    recorded = {split for split, _ in known}
    found, changed = dict(known), []
    for split, name, path in _files(splits):
        old = known.get((split, name))
        try:
            new = _look(split, name, path, old, WHOLE_BYTES if full else EDGE_BYTES)
        except OSError:  # The scan reports it, or the recipe replaces unreadable images.
            continue
        if (old is None and split in recorded) or (old is not None and old.digest != new.digest):
            changed.append(new)
        found[split, name] = new
    if changed:
        raise _changed(run, changed, len(found))
    if found != known:
        _write(file, list(found.values()))


def has_touched_images(run: RunFolder) -> bool:
    """Return whether a file of an earlier session has another size or time. A file can be missing by now."""
    return any(_is_touched(one) for one in _read(run.stage_folder("data") / FILE))


def _files(splits: Mapping[str, SampleSet]) -> Iterator[tuple[str, str, Path]]:
    """Yield split, name and path of each file once."""
    for split, samples in splits.items():
        seen: set[Path] = set()
        root = samples.origin.image_root
        for sample in samples:
            for ref in sample.images:
                if ref.path not in seen:
                    seen.add(ref.path)
                    # Another file system can normalise the same name differently.
                    yield split, unicodedata.normalize("NFC", ref.path.relative_to(root).as_posix()), ref.path


def _look(split: str, name: str, path: Path, old: ImageFile | None, most_bytes: int) -> ImageFile:
    """Return the entry of a file. Only a new or touched file is read."""
    facts = path.stat()
    if old is None:
        digest = _digest(path, facts.st_size, most_bytes)
    elif (old.size, old.time) == (facts.st_size, facts.st_mtime_ns):
        digest, most_bytes = old.digest, old.digest_bytes
    else:
        most_bytes = old.digest_bytes
        digest = _digest(path, facts.st_size, most_bytes)
    return ImageFile(split, name, str(path), facts.st_size, facts.st_mtime_ns, digest, most_bytes)


def _digest(path: Path, size: int, most_bytes: int) -> str:
    """Return a digest of a file's size, and of its content or its two ends."""
    half = most_bytes // 2
    digest = xxhash.xxh3_128(str(size).encode())
    with path.open("rb") as stream:
        digest.update(stream.read(half))
        stream.seek(max(half, size - half))
        digest.update(stream.read(half))
    return digest.hexdigest()


def _is_touched(one: ImageFile) -> bool:
    try:
        facts = Path(one.path).stat()
    except OSError:
        return False
    return (facts.st_size, facts.st_mtime_ns) != (one.size, one.time)


def _changed(run: RunFolder, changed: Sequence[ImageFile], count: int) -> RunError:
    shown = ", ".join(f"{one.split}: {hidden_id(one.path)}" for one in changed[:SHOWN])
    more = f" and {len(changed) - SHOWN:,} more" if len(changed) > SHOWN else ""
    return RunError(
        "run.images_changed",
        "the images of a run must not change, because its results are of the earlier ones",
        place=run.path,
        value=f"{len(changed):,} of {count:,} files: {shown}{more}",
        remedy=f"{IDENTIFIERS} in this folder has the names of the files. Restore them, start over with --fresh (the "
        "old folder is kept under another name), "
        "or choose another name with --set run.name=...",
    )


def _read(file: Path) -> list[ImageFile]:
    """Return the stored files. A missing record has none, as in runs of earlier versions. So has a corrupt one."""
    try:
        table = pq.read_table(file, schema=_SCHEMA)
    except FileNotFoundError:
        return []
    except (OSError, pa.ArrowException):
        rule = "the record of the images is damaged, so images that changed before now are not found"
        warn("run.images_record_damaged", rule, place=file, remedy="Restore the file if you have a copy.")
        return []
    columns = (table.column(one.name).to_pylist() for one in fields(ImageFile))
    return [ImageFile(*values) for values in zip(*columns, strict=True)]


def _write(file: Path, files: Sequence[ImageFile]) -> None:
    rows = list(zip(*map(astuple, files), strict=True))
    temporary = file.with_name(f".{file.name}.partial")
    table = pa.table([pa.array(row) for row in rows], schema=_SCHEMA)
    with os.fdopen(open_private(temporary), "wb") as stream:
        pq.write_table(table, stream, compression="zstd")
    replace_file(temporary, file)
