"""Rows of Arrow tables as JSON values. Embedded images are written to files."""

import datetime
import decimal
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

_MAGIC = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)


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
            aside = file.with_name(f"{file.name}.{os.getpid()}")
            aside.write_bytes(content)
            aside.replace(file)
        return inside


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


def _suffix(content: bytes) -> str:
    if content[128:132] == b"DICM":
        return ".dcm"
    return next((suffix for magic, suffix in _MAGIC if content.startswith(magic)), "")
