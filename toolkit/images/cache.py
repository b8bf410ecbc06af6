"""Reduced pictures in memory, bounded by bytes, and on disk, found by the content of the file and the policy.

On disk, below the cache's folder:

    images/<policy>/<aa>/<content>-<part>   a checksum, one JSON line (record, shape), then the bare pixels
    images/files/<aa>/<path, size, times>    the content key of a file, so that a hit does not read the original

Pixels are not compressed: reduced films compress to no less than two thirds, and unpacking would take most of the time.
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

MAGIC = "toolkit-image-1"
FREE_SHARE, FREE_MOST, FREE_LEAST = 0.1, 20 * 2**30, 2 * 2**30
"""Pictures are no longer stored when the disk would have less left than this share of it, but at most and at least so
many bytes: checkpoints and exports need it more."""

SETTLED_NS = 2_000_000_000
"""A file changed more recently than this may change again within one tick of its clock: its key is not remembered."""


class MemoryCache:
    """The pictures used last, at most ``limit`` bytes of them. Safe to share between threads."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._pictures: OrderedDict[object, Reduced] = OrderedDict()
        self._lock = Lock()

    def get(self, key: object) -> Reduced | None:
        """The picture, now the one used last; None: not here."""
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
            return self._pictures.get(key)

    def put(self, key: object, picture: Reduced) -> None:
        """Keep the picture, and drop those not used for longest until all fit; one larger than all is not kept."""
        with self._lock:
            self._drop(key)
            if picture.values.nbytes > self.limit:
                return
            self._pictures[key] = picture
            self.used += picture.values.nbytes
            while self.used > self.limit:
                self._drop(next(iter(self._pictures)))

    def _drop(self, key: object) -> None:
        gone = self._pictures.pop(key, None)
        self.used -= 0 if gone is None else gone.values.nbytes


@dataclass(frozen=True, slots=True)
class DiskCache:
    """Reduced pictures of one policy on disk. Every write is atomic; what cannot be read back counts as absent."""

    folder: Path
    policy_key: str

    def content_key(self, path: Path, facts: os.stat_result) -> str | None:
        """The content key remembered for the file as it is now; None: its bytes must be hashed."""
        try:
            return self._memo(path, facts).read_text("ascii") or None
        except (OSError, ValueError):
            return None

    def remember(self, path: Path, facts: os.stat_result, key: str) -> None:
        """Keep the content key of a file that has not just changed.

        Raises:
            OSError: the cache cannot be written.
        """
        if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) > SETTLED_NS:
            write_atomically(self._memo(path, facts), key.encode())

    def get(self, key: str, part: str) -> Reduced | None:
        """The reduced picture of the content, or None where it is absent or damaged."""
        try:
            data = self._entry(key, part).read_bytes()
            return _unpacked(data)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def put(self, key: str, part: str, picture: Reduced) -> None:
        """Store the reduced picture.

        Raises:
            OSError: the cache cannot be written, or the disk is nearly full.
        """
        write_atomically(self._entry(key, part), _packed(picture))

    def _entry(self, key: str, part: str) -> Path:
        return self.folder / self.policy_key / key[:2] / f"{key}-{part}"

    def _memo(self, path: Path, facts: os.stat_result) -> Path:
        words = f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ctime_ns}"
        name = hashlib.blake2b(words.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        return self.folder / "files" / name[:2] / name


def content_key(data: bytes) -> str:
    """32 hex digits of a file's content, by xxh3: a cryptographic hash would cost a tenth of the time of decoding."""
    return xxhash.xxh3_128_hexdigest(data)


def write_atomically(path: Path, data: bytes) -> None:
    """Write aside, then rename: readers see the old file, none, or the whole new one.

    Raises:
        OSError: it cannot be written, or too little would be left free on the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(path.parent)
    keep = max(FREE_LEAST, min(FREE_MOST, FREE_SHARE * disk.total))
    if disk.free < keep + len(data):
        raise OSError(f"less than {keep / 2**30:.0f} GiB would be left on the disk of {path.parent}")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _packed(picture: Reduced) -> bytes:
    head = {"magic": MAGIC, "shape": picture.values.shape, "record": picture.record.as_json()}
    body = json.dumps(head).encode() + b"\n" + np.ascontiguousarray(picture.values).tobytes()
    return xxhash.xxh3_64_hexdigest(body).encode() + b"\n" + body


def _unpacked(data: bytes) -> Reduced:
    """The picture in ``data``.

    Raises:
        ValueError, TypeError, KeyError: anything but what ``_packed`` wrote.
    """
    head_at = data.index(b"\n") + 1
    if data[: head_at - 1] != xxhash.xxh3_64_hexdigest(memoryview(data)[head_at:]).encode():
        raise ValueError("the cached picture is damaged")
    pixels_at = data.index(b"\n", head_at) + 1
    head = json.loads(data[head_at:pixels_at])
    if head["magic"] != MAGIC:
        raise ValueError("the cached picture is of another kind")
    values = np.frombuffer(data, np.uint8, offset=pixels_at).reshape(head["shape"])
    return Reduced(values, ImageRecord.from_json(head["record"]))
