"""One picture from disk to 8-bit RGB, without any cache."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from toolkit.images import dicom
from toolkit.images.decode import decode
from toolkit.images.files import NOT_READABLE, broken, stat_image
from toolkit.images.header import Header, read_header
from toolkit.images.policy import ImagePolicy, LoadedImage
from toolkit.images.ref import ImageRef
from toolkit.images.render import Reduced, crop_size, render


def load(ref: ImageRef, policy: ImagePolicy) -> LoadedImage:
    """The picture in mode RGB, upright, and the record of what was done to it.

    Raises:
        ImageError: missing, unreadable, damaged, cut off or too large.
        MissingExtraError: a DICOM file, and the extra ``dicom`` is not installed.
    """
    stat_image(ref.path)
    return reduce(*read(ref, policy), ref, policy).load()


def read_image_header(ref: ImageRef, policy: ImagePolicy, roots: Sequence[str] = ()) -> Header:
    """The picture's header, checked as far as that goes without decoding: format, pixel limit, the file's end.

    ``roots`` are real paths of the folders that the file must be in; none: anywhere.

    Raises:
        ImageError, MissingExtraError: as ``load`` would, but damage inside the file is not seen.
    """
    stat_image(ref.path, roots)
    with _opened(ref.path) as stream:
        return read_header(stream, ref, policy.max_pixels)


def reduced_size(ref: ImageRef, policy: ImagePolicy) -> tuple[int, int]:
    """(width, height) that ``load`` gives, of the crop where ``ref`` has one, from the header alone.

    Raises:
        ImageError, MissingExtraError: as ``read_image_header``.
    """
    size = read_image_header(ref, policy).size
    return policy.reduced(crop_size(ref.crop) if ref.crop else size)


def read(ref: ImageRef, policy: ImagePolicy) -> tuple[bytes, Header]:
    """The file's bytes and header; nothing of a file whose header is refused is read beyond it.

    Raises:
        ImageError, MissingExtraError: as ``read_image_header``.
    """
    with _opened(ref.path) as stream:
        header = read_header(stream, ref, policy.max_pixels)
        stream.seek(0)
        return stream.read(), header


def reduce(data: bytes, header: Header, ref: ImageRef, policy: ImagePolicy) -> Reduced:
    """The 8-bit picture made from what ``read`` gave.

    Raises:
        ImageError: damaged, or the policy does not fit the picture.
        MissingExtraError: the DICOM decoder for its compression is not installed.
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
        raise broken(path, *NOT_READABLE, error.strerror or str(error)) from error
