"""Load one image from disk as 8-bit RGB, without a cache."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from toolkit.images import dicom
from toolkit.images.decode import decode
from toolkit.images.files import NOT_READABLE, stat_image, unreadable_image
from toolkit.images.header import Header, read_header
from toolkit.images.policy import ImagePolicy, LoadedImage
from toolkit.images.ref import ImageRef
from toolkit.images.render import Reduced, crop_size, render


def load(ref: ImageRef, policy: ImagePolicy) -> LoadedImage:
    """Return the upright image in mode RGB and its record.

    Raises:
        ImageError: The file is missing, unreadable, corrupt, truncated or too large.
        MissingExtraError: The file is DICOM and the extra ``dicom`` is not installed.
    """
    stat_image(ref.path)
    return reduce(*read(ref, policy), ref, policy).load()


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


def read(ref: ImageRef, policy: ImagePolicy) -> tuple[bytes, Header]:
    """Return the file's bytes and header. A file with a rejected header is not read any further.

    Raises:
        ImageError: As for ``read_image_header``.
        MissingExtraError: As for ``load``.
    """
    with _opened(ref.path) as stream:
        header = read_header(stream, ref, policy.max_pixels)
        stream.seek(0)
        return stream.read(), header


def reduce(data: bytes, header: Header, ref: ImageRef, policy: ImagePolicy) -> Reduced:
    """Return the 8-bit image of the bytes and header from ``read``.

    Raises:
        ImageError: The file is corrupt, or the policy does not apply to the image.
        MissingExtraError: The DICOM decoder for its compression is not installed.
    """
    if header.decoder == "dicom":
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
