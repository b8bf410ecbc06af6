"""ImageStore: every picture of a run through one policy, with caches, a rule for unreadable files, and counters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from PIL import Image

from toolkit import recipe
from toolkit.errors import ImageError
from toolkit.images.cache import DiskCache, MemoryCache, content_key
from toolkit.images.files import stat_image
from toolkit.images.header import Header
from toolkit.images.policy import ImagePolicy, ImageRecord, LoadedImage, placeholder
from toolkit.images.ref import ImageRef
from toolkit.images.render import Reduced
from toolkit.images.source import read, read_image_header, reduce
from toolkit.runfolder.cache import cache_folder

Unreadable = Literal["stop", "skip", "placeholder"]


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What one store did since it was made (each process counts for itself).

    Attributes:
        opened: pictures decoded from their own files.
        memory_hits, disk_hits: pictures that the caches gave.
        placeholders: grey squares handed out for unreadable files.
        skipped: unreadable files refused for the caller to leave out.
        windowed: pictures, opened or from disk, of more than 8 bits that a window brought to 8.
        clipped: how many of these had pixels outside their window.
        clipped_share: mean share of pixels outside the window over the windowed pictures, 0 to 1.
        unstored: pictures that could not be written to the disk cache; ``cache_problem`` is the last reason.
    """

    opened: int = 0
    memory_hits: int = 0
    disk_hits: int = 0
    placeholders: int = 0
    skipped: int = 0
    windowed: int = 0
    clipped: int = 0
    clipped_fraction: float = 0.0
    unstored: int = 0
    cache_problem: str = ""


class ImageStore:
    """Pictures by reference. Safe to share between threads, and to send to worker processes (which count anew).

    A picture in memory is not looked up again: files are taken not to change while a store lives.

    Args:
        policy: what every picture becomes.
        unreadable: ``stop`` and ``skip`` raise (``skip`` counts it: the caller leaves the sample out), ``placeholder``
            gives a grey square.
        memory_mb: bytes of reduced pictures kept in memory, in MiB.
        disk: folder of the disk cache; None: no disk cache.
        roots: data roots that every file must be in once symbolic links are followed; none: not checked.
    """

    def __init__(
        self,
        policy: ImagePolicy,
        unreadable: Unreadable = "stop",
        memory_mb: int = 512,
        disk: Path | None = None,
        roots: Sequence[Path] = (),
    ) -> None:
        self.policy, self.unreadable, self.memory_mb, self.disk = policy, unreadable, memory_mb, disk
        self.roots = tuple(roots)
        self._real_roots = tuple(str(Path(root).resolve()) for root in roots)
        self._memory = MemoryCache(memory_mb * 2**20)
        self._cache = None if disk is None else DiskCache(disk, policy.key)
        self._report = StoreReport()
        self._lock = Lock()

    @classmethod
    def from_recipe(cls, images: recipe.Images, roots: Sequence[Path] = ()) -> "ImageStore":
        """The store of a recipe; its disk cache is ``images`` in the cache folder."""
        disk = cache_folder() / "images" if images.disk_cache else None
        return cls(ImagePolicy.from_recipe(images), images.unreadable, images.memory_cache_mb, disk, roots)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageStore, (self.policy, self.unreadable, self.memory_mb, self.disk, self.roots)

    def get(self, ref: ImageRef) -> Image.Image:
        """The picture in mode RGB, the caller's own copy.

        Raises:
            ImageError, MissingExtraError: as ``load``.
        """
        return self.load(ref).image

    def load(self, ref: ImageRef) -> LoadedImage:
        """The picture and its record.

        Raises:
            ImageError: it cannot be read, unless the rule is ``placeholder``.
            MissingExtraError: a DICOM file, and the extra ``dicom`` is not installed.
        """
        try:
            return self.fetch(ref)
        except ImageError as error:
            if self.unreadable == "placeholder":
                self._count(placeholders=1)
                return placeholder(self.policy, str(error))
            self._count(skipped=self.unreadable == "skip")
            raise

    def fetch(self, ref: ImageRef) -> LoadedImage:
        """The picture and its record, whatever the rule for unreadable files is.

        Two threads that ask for the same new picture at once both make it.

        Raises:
            ImageError, MissingExtraError: it cannot be read.
        """
        picture = self._memory.get(ref)
        if picture is not None:
            self._count(memory_hits=1)
            return picture.load()
        picture = self._opened(ref) if self._cache is None else self._opened_or_cached(ref, self._cache)
        self._memory.put(ref, picture)
        self._count_window(picture.record)
        return picture.load()

    def read_image_header(self, ref: ImageRef) -> Header:
        """The picture's header, checked without decoding, and nothing kept.

        Raises:
            ImageError, MissingExtraError: it cannot be read; damage inside the file is not seen.
        """
        return read_image_header(ref, self.policy, self._real_roots)

    def report(self) -> StoreReport:
        """The counters as they are now."""
        with self._lock:
            return self._report

    def _opened(self, ref: ImageRef) -> Reduced:
        stat_image(ref.path, self._real_roots)
        return self._reduced(*read(ref, self.policy), ref)

    def _opened_or_cached(self, ref: ImageRef, cache: DiskCache) -> Reduced:
        facts = stat_image(ref.path, self._real_roots)
        known = cache.content_key(ref.path, facts)
        if known is not None and (picture := cache.get(known, ref.part)) is not None:
            self._count(disk_hits=1)
            return picture
        data, header = read(ref, self.policy)
        key = content_key(data)
        if key != known:
            self._store(lambda: cache.remember(ref.path, facts, key))
            if (picture := cache.get(key, ref.part)) is not None:
                self._count(disk_hits=1)
                return picture
        picture = self._reduced(data, header, ref)
        self._store(lambda: cache.put(key, ref.part, picture), pictures=1)
        return picture

    def _reduced(self, data: bytes, header: Header, ref: ImageRef) -> Reduced:
        picture = reduce(data, header, ref, self.policy)
        self._count(opened=1)
        return picture

    def _store(self, write: Callable[[], None], pictures: int = 0) -> None:
        """A cache that cannot be written costs time, not the run."""
        try:
            write()
        except OSError as error:
            with self._lock:
                unstored = self._report.unstored + pictures
                self._report = replace(self._report, unstored=unstored, cache_problem=str(error))

    def _count(self, **more: int) -> None:
        with self._lock:
            self._report = replace(self._report, **{k: getattr(self._report, k) + n for k, n in more.items()})

    def _count_window(self, record: ImageRecord) -> None:
        if record.window is None:
            return
        with self._lock:
            now = self._report
            windowed = now.windowed + 1
            share = now.clipped_fraction + (record.clipped - now.clipped_fraction) / windowed
            clipped = now.clipped + (record.clipped > 0)
            self._report = replace(now, windowed=windowed, clipped=clipped, clipped_fraction=share)
