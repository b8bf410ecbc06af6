"""Load images as 8-bit RGB: one file without a cache, or all images of a run through an ImageStore.

A store has one policy, caches, handling of unreadable files, and counters.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Literal

from PIL import Image

from toolkit import recipe
from toolkit.errors import ImageError
from toolkit.images import dicom, nifti
from toolkit.images.cache import DiskCache, MemoryCache, content_key, content_key_of_file
from toolkit.images.decode import decode
from toolkit.images.header import Header, read_header
from toolkit.images.policy import ImagePolicy, ImageRecord, LoadedImage, placeholder
from toolkit.images.ref import NOT_READABLE, ImageRef, stat_image, unreadable_image
from toolkit.images.render import Reduced, crop_size, render
from toolkit.runfolder.cache import cache_folder

Unreadable = Literal["stop", "skip", "placeholder"]

Rejection = Callable[[tuple[int, int]], str]


@dataclass(frozen=True, slots=True)
class StoreReport:
    """Counters of one store. Each process has its own.

    Attributes:
        opened: Images decoded from their files.
        memory_hits, disk_hits: Images from the caches.
        placeholders: Grey placeholders returned for unreadable files.
        skipped: Unreadable files that the caller must leave out.
        windowed: Images above 8 bits, decoded or from disk, that a window reduced to 8 bits.
        clipped: Number of these with pixels outside their window.
        clipped_fraction: Mean fraction of pixels outside the window over the windowed images, in [0, 1].
        unstored: Images that the disk cache failed to store. ``cache_problem`` is the last error.
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
    """Images by reference. Thread-safe and picklable. A worker process starts its own counters.

    An image in the in-memory cache is not checked again: files must not change while a store is in use.

    Args:
        policy: Policy of every image.
        unreadable: ``stop`` and ``skip`` raise, and ``skip`` also counts the image, which the caller leaves out.
            ``placeholder`` returns a grey square.
        memory_mb: Size of the in-memory cache in MiB.
        disk: Folder of the disk cache, if any.
        roots: Data roots that must contain every file after resolving symbolic links. Empty means no check.
        rejection: Returns why the model rejects an image of (width, height), or an empty text. None means no check.
            Such an image is unreadable.
    """

    def __init__(
        self,
        policy: ImagePolicy,
        unreadable: Unreadable = "stop",
        memory_mb: int = 512,
        disk: Path | None = None,
        roots: Sequence[Path] = (),
        rejection: Rejection | None = None,
    ) -> None:
        self.policy, self.unreadable, self.memory_mb, self.disk = policy, unreadable, memory_mb, disk
        self.roots, self.rejection = tuple(roots), rejection
        self._real_roots = tuple(str(Path(root).resolve()) for root in roots)
        self._memory = MemoryCache(memory_mb * 2**20)
        self._cache = None if disk is None else DiskCache(disk, policy.key)
        self._report = StoreReport()
        self._lock = Lock()

    @classmethod
    def from_recipe(
        cls,
        images: recipe.Images,
        model: recipe.Model,
        roots: Sequence[Path] = (),
        rejection: Rejection | None = None,
    ) -> "ImageStore":
        """Return the store of a recipe. Its disk cache is ``images`` in the cache folder."""
        disk = cache_folder() / "images" if images.disk_cache else None
        policy = ImagePolicy.from_recipe(images, model)
        return cls(policy, images.unreadable, images.memory_cache_mb, disk, roots, rejection)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageStore, (self.policy, self.unreadable, self.memory_mb, self.disk, self.roots, self.rejection)

    def get(self, ref: ImageRef) -> Image.Image:
        """Return the image in mode RGB, owned by the caller.

        Raises:
            ImageError: As for ``load``.
            MissingExtraError: As for ``load``.
        """
        return self.load(ref).image

    def load(self, ref: ImageRef) -> LoadedImage:
        """Return the image and its record.

        Raises:
            ImageError: The image is unreadable, and ``unreadable`` is not ``placeholder``.
            MissingExtraError: The file is DICOM and the extra ``dicom`` is not installed.
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
        """Return the image and its record, and raise for an unreadable file independently of ``unreadable``.

        Two threads that request the same uncached image both decode it.

        Raises:
            ImageError: The image is unreadable.
            MissingExtraError: The file is DICOM and the extra ``dicom`` is not installed.
        """
        image = self._memory.get(ref)
        if image is not None:
            self._count(memory_hits=1)
            return image.load()
        image = self._opened(ref) if self._cache is None else self._opened_or_cached(ref, self._cache)
        self._require_accepted(ref, image.record.size)
        self._memory.put(ref, image)
        self._count_window(image.record)
        return image.load()

    def read_header(self, ref: ImageRef) -> Header:
        """Return the header, checked without decoding. Nothing is cached.

        Raises:
            ImageError: The header is unreadable. Corrupt pixel data is not detected.
            MissingExtraError: The file is DICOM and the extra ``dicom`` is not installed.
        """
        return read_image_header(ref, self.policy, self._real_roots)

    def reduced_size(self, ref: ImageRef) -> tuple[int, int]:
        """Return (width, height) of the image for the model, from the header alone.

        Raises:
            ImageError: The header is unreadable, or the model rejects the size.
            MissingExtraError: As in ``read_header``.
        """
        size = self.policy.output_size(crop_size(ref.crop) if ref.crop else self.read_header(ref).size)
        self._require_accepted(ref, size)
        return size

    def _require_accepted(self, ref: ImageRef, size: tuple[int, int]) -> None:
        reason = "" if self.rejection is None else self.rejection(size)
        if reason:
            rule = f"the model must accept an image of {size[0]} x {size[1]} pixels (after images.max_side)"
            remedy = 'Crop the image, or set images.unreadable to "skip" or "placeholder".'
            raise ImageError("images.size_rejected", rule, place=ref.path, value=reason, remedy=remedy)

    def report(self) -> StoreReport:
        """Return the current counters."""
        with self._lock:
            return self._report

    def _opened(self, ref: ImageRef) -> Reduced:
        stat_image(ref.path, self._real_roots)
        return self._reduced(*_read(ref, self.policy), ref)

    def _opened_or_cached(self, ref: ImageRef, cache: DiskCache) -> Reduced:
        facts = stat_image(ref.path, self._real_roots)
        known = cache.content_key(ref.path, facts)
        if known is not None and (image := cache.get(known, ref.part)) is not None:
            self._count(disk_hits=1)
            return image
        data, header = _read(ref, self.policy)
        key = content_key_of_file(ref.path) if header.decoder == "nifti" else content_key(data)
        if key != known:
            self._store(lambda: cache.remember(ref.path, facts, key))
            if (image := cache.get(key, ref.part)) is not None:
                self._count(disk_hits=1)
                return image
        image = self._reduced(data, header, ref)
        self._store(lambda: cache.put(key, ref.part, image), images=1)
        return image

    def _reduced(self, data: bytes, header: Header, ref: ImageRef) -> Reduced:
        image = _reduce(data, header, ref, self.policy)
        self._count(opened=1)
        return image

    def _store(self, write: Callable[[], None], images: int = 0) -> None:
        """Write to the disk cache. A failure costs time but does not stop the run."""
        try:
            write()
        except OSError as error:
            with self._lock:
                unstored = self._report.unstored + images
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
            fraction = now.clipped_fraction + (record.clipped - now.clipped_fraction) / windowed
            clipped = now.clipped + (record.clipped > 0)
            self._report = replace(now, windowed=windowed, clipped=clipped, clipped_fraction=fraction)


def load(ref: ImageRef, policy: ImagePolicy) -> LoadedImage:
    """Return the upright image in mode RGB and its record.

    Raises:
        ImageError: The file is missing, unreadable, corrupt, truncated or too large.
        MissingExtraError: The file is DICOM and the extra ``dicom`` is not installed.
    """
    stat_image(ref.path)
    return _reduce(*_read(ref, policy), ref, policy).load()


def read_image_header(ref: ImageRef, policy: ImagePolicy, roots: Sequence[str] = ()) -> Header:
    """Return the header, checked without decoding: format, pixel limit and the end of the file.

    ``roots`` are real paths of the folders that must contain the file. Empty means no restriction.

    Raises:
        ImageError: As for ``load``, but corrupt pixel data is not detected.
        MissingExtraError: As for ``load``.
    """
    stat_image(ref.path, roots)
    with _opened(ref.path) as stream:
        return read_header(stream, ref, policy.max_pixels)


def reduced_size(ref: ImageRef, policy: ImagePolicy) -> tuple[int, int]:
    """Return the (width, height) of ``load``'s result, or of its crop, from the header alone.

    Raises:
        ImageError: As for ``read_image_header``.
        MissingExtraError: As for ``load``.
    """
    size = read_image_header(ref, policy).size
    return policy.output_size(crop_size(ref.crop) if ref.crop else size)


def _read(ref: ImageRef, policy: ImagePolicy) -> tuple[bytes, Header]:
    """Return the file's bytes and header. A file with a rejected header is not read any further, and no volume is.

    Raises:
        ImageError: As for ``read_image_header``.
        MissingExtraError: As for ``load``.
    """
    with _opened(ref.path) as stream:
        header = read_header(stream, ref, policy.max_pixels)
        if header.decoder == "nifti":
            return b"", header
        stream.seek(0)
        return stream.read(), header


def _reduce(data: bytes, header: Header, ref: ImageRef, policy: ImagePolicy) -> Reduced:
    """Return the 8-bit image of the bytes and header from ``_read``.

    Raises:
        ImageError: The file is corrupt, or the policy does not apply to the image.
        MissingExtraError: The DICOM decoder for its compression is not installed.
    """
    if header.decoder == "nifti":
        pixels = nifti.read_slice(ref)
    elif header.decoder == "dicom":
        pixels = dicom.read_pixels(io.BytesIO(data), ref, own_window=policy.window in ("auto", "dicom"))
    else:
        pixels = decode(data, header, ref)
    return render(pixels, header, policy, ref)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise unreadable_image(path, *NOT_READABLE, error.strerror or str(error)) from error
