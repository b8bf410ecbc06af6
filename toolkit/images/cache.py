"""In-memory and disk caches of rendered images, keyed by file content and policy.

Layout of the disk cache:

    images/<policy>/<aa>/<content>-<part>   a checksum, one JSON line (record, shape), then the raw pixels
    images/files/<aa>/<path, size, times>    the content key of a file, so that a hit does not read the original

Pixels are not compressed: compression saves at most a third, and decompression would dominate the read time.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import xxhash

from toolkit.images.policy import ImageRecord
from toolkit.images.render import Reduced
from toolkit.runfolder.cache import make_cache_folder, mark_used

MAGIC = "toolkit-image-2"
FREE_FRACTION, FREE_MOST, FREE_LEAST = 0.1, 20 * 2**30, 2 * 2**30
"""The disk cache stops storing images if less than this fraction of the disk would stay free, clamped to the two byte
counts. Checkpoints and exports need the space more."""

SETTLED_NS = 2_000_000_000
"""Minimum age of a file in nanoseconds. A newer file can change again within one tick of its clock, so its content key
is not remembered."""


class MemoryCache:
    """A least-recently-used cache of at most ``limit`` bytes. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._images: OrderedDict[object, Reduced] = OrderedDict()
        self._lock = Lock()

    def get(self, key: object) -> Reduced | None:
        """Return the image and mark it as most recently used, or return None if it is absent."""
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
            return self._images.get(key)

    def put(self, key: object, image: Reduced) -> None:
        """Store the image and evict the least recently used ones. An image above ``limit`` is not stored."""
        with self._lock:
            self._drop(key)
            if image.values.nbytes > self.limit:
                return
            self._images[key] = image
            self.used += image.values.nbytes
            while self.used > self.limit:
                self._drop(next(iter(self._images)))

    def _drop(self, key: object) -> None:
        gone = self._images.pop(key, None)
        self.used -= 0 if gone is None else gone.values.nbytes


@dataclass(frozen=True, slots=True)
class DiskCache:
    """Rendered images of one policy on disk. Writes are atomic, and unreadable entries count as absent."""

    folder: Path
    policy_key: str

    def content_key(self, path: Path, facts: os.stat_result) -> str | None:
        """Return the remembered content key of the unchanged file, or None if its bytes must be hashed."""
        try:
            file = self._memo(path, facts)
            key = file.read_text("ascii")
        except (OSError, ValueError):
            return None
        mark_used(file)
        return key or None

    def remember(self, path: Path, facts: os.stat_result, key: str) -> None:
        """Store the content key of a file, unless the file changed very recently.

        Raises:
            OSError: The cache is not writable.
        """
        if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) > SETTLED_NS:
            write_atomically(self._memo(path, facts), key.encode())

    def get(self, key: str, part: str) -> Reduced | None:
        """Return the rendered image of the content, or None if the entry is absent or corrupt."""
        try:
            file = self._entry(key, part)
            image = _unpacked(file.read_bytes())
        except (OSError, ValueError, TypeError, KeyError):
            return None
        mark_used(file)
        return image

    def put(self, key: str, part: str, image: Reduced) -> None:
        """Store the rendered image.

        Raises:
            OSError: The cache is not writable, or the disk is nearly full.
        """
        write_atomically(self._entry(key, part), _packed(image))

    def _entry(self, key: str, part: str) -> Path:
        return self.folder / self.policy_key / key[:2] / f"{key}-{part}"

    def _memo(self, path: Path, facts: os.stat_result) -> Path:
        identity = f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ctime_ns}"
        name = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        return self.folder / "files" / name[:2] / name


def content_key(data: bytes) -> str:
    """Return 32 hex digits of the xxh3 hash. A cryptographic hash would add a tenth to the decoding time."""
    return xxhash.xxh3_128_hexdigest(data)


def content_key_of_file(path: Path) -> str:
    """Return ``content_key`` of a file that is too large to be read at once.

    Raises:
        OSError: The file is not readable.
    """
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while part := stream.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a temporary file, then rename it, so that readers never see a partial file.

    Raises:
        OSError: The file is not writable, or too little disk space would stay free.
    """
    make_cache_folder(path.parent)
    disk = shutil.disk_usage(path.parent)
    keep = max(FREE_LEAST, min(FREE_MOST, FREE_FRACTION * disk.total))
    if disk.free < keep + len(data):
        raise OSError(f"less than {keep / 2**30:.0f} GiB would be left on the disk of {path.parent}")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".new-{os.getpid()}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _packed(image: Reduced) -> bytes:
    head = {"magic": MAGIC, "shape": image.values.shape, "record": image.record.as_json()}
    body = json.dumps(head).encode() + b"\n" + np.ascontiguousarray(image.values).tobytes()
    return xxhash.xxh3_64_hexdigest(body).encode() + b"\n" + body


def _unpacked(data: bytes) -> Reduced:
    """Return the image in ``data``.

    Raises:
        ValueError, TypeError, KeyError: ``data`` was not written by ``_packed``.
    """
    head_at = data.index(b"\n") + 1
    if data[: head_at - 1] != xxhash.xxh3_64_hexdigest(memoryview(data)[head_at:]).encode():
        raise ValueError("the cached image is corrupt")
    pixels_at = data.index(b"\n", head_at) + 1
    head = json.loads(data[head_at:pixels_at])
    if head["magic"] != MAGIC:
        raise ValueError("the cached image has another format")
    values = np.frombuffer(data, np.uint8, offset=pixels_at).reshape(head["shape"])
    return Reduced(values, ImageRecord.from_json(head["record"]))
