"""Image headers: format, size, bit depth and completeness, read before any pixel is decoded."""

import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Literal

from PIL import Image, UnidentifiedImageError

from toolkit.errors import ImageError
from toolkit.images import dicom, nifti, tiff
from toolkit.images.ref import NO_FRAME, TRUNCATED, ImageRef, is_volume, unreadable_image

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
TAIL = 65_536
"""Bytes at a file's end that are searched for an end marker, because some writers add padding after it."""

PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "JPEG2000", "PPM")
"""The only formats that Pillow may open. Others run further programs (PostScript). MPO is opened as JPEG."""

OTHER_FORMATS: tuple[tuple[bytes, int, str], ...] = (
    (b"%!PS", 0, "PostScript"),
    (b"\xc5\xd0\xd3\xc6", 0, "PostScript"),
    (b"%PDF", 0, "PDF"),
    (b"8BPS", 0, "Photoshop"),
    (b"ftypheic", 4, "HEIC"),
    (b"ftypmif1", 4, "HEIC"),
    (b"ftypavif", 4, "AVIF"),
    (b"\xff\x0a", 0, "JPEG XL"),
    (b"\0\0\0\x0cJXL ", 0, "JPEG XL"),
    (b"\x89HDF", 0, "HDF5"),
    (b"\x93NUMPY", 0, "a NumPy array"),
    (b"PK\x03\x04", 0, "a ZIP archive"),
    (b"\x1f\x8b", 0, "a gzip file"),
    (b"ftyp", 4, "a video or another MPEG-4 file"),
    (b"objecttype", 0, "MetaImage"),
    (b"\0\5\x16\7", 0, "a resource file of macOS, which belongs to the file without ._"),
    (b"NRRD", 0, "NRRD"),
    (b"<svg", 0, "SVG"),
    (b"<?xml", 0, "XML or SVG"),
    (b"<!doctype html", 0, "an HTML page"),
    (b"<html", 0, "an HTML page"),
    (b"version https://git-lfs", 0, "a Git LFS pointer without the file itself"),
)
"""First bytes in lower case or as they are, their place, and the name of formats that are not read."""

BITS_OF_MODE = {"1": 1, "I": 32, "F": 32}
"""Pillow's mode -> bits per channel. Modes like I;16 have 16 bits and all others 8."""

MALFORMED = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError)
MALFORMED_BY_PILLOW = (*MALFORMED, struct.error, zlib.error, NotImplementedError, Image.DecompressionBombError)
"""Exceptions of Pillow's format plugins for malformed files."""

Decoder = Literal["opencv", "pillow", "dicom", "nifti"]


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an image that was not decoded.

    ``size`` is (width, height) of the upright image. ``orientation`` is the EXIF or TIFF number. If ``upright`` is set,
    the decoder named in ``decoder`` has already applied it.
    """

    format: str
    size: tuple[int, int]
    bits: int
    decoder: Decoder
    orientation: int = 1
    upright: bool = False
    page: tiff.TiffPage | None = None
    frames: int = 1
    """Frames of the file, such as the pages of a TIFF."""
    notes: tuple[str, ...] = ()
    """Codes of ``scan.NOTES``."""


def open_with_pillow(stream: BinaryIO) -> Image.Image:
    """Open an image of one of ``PILLOW_FORMATS``. No other code of the package calls ``Image.open``."""
    return Image.open(stream, formats=PILLOW_FORMATS)


def read_header(stream: BinaryIO, ref: ImageRef, max_pixels: int) -> Header:
    """Return the header of ``ref`` after all cheap checks. ``stream`` is its open file.

    Raises:
        ImageError: The file is not an image, has more than ``max_pixels`` pixels, or is truncated.
        MissingExtraError: The file is DICOM and pydicom is not installed.
    """
    header = _sniff(stream, ref, max_pixels)
    width, height = header.size
    if width < 1 or height < 1:
        rule = "an image must have at least one pixel by its header"
        raise unreadable_image(ref.path, "images.no_pixels", rule, f"{width} x {height}")
    if width * height > max_pixels:
        raise _too_large(ref, max_pixels, f"{width} x {height}")
    if not _has_its_end(stream, header):
        raise unreadable_image(ref.path, *TRUNCATED)
    return header


def _too_large(ref: ImageRef, max_pixels: int, size: str) -> ImageError:
    rule = f"an image must have at most {max_pixels:,} pixels by its header"
    remedy = "If you trust the file, raise images.max_pixels."
    return ImageError("images.too_many_pixels", rule, place=ref.path, value=size, remedy=remedy)


def _sniff(stream: BinaryIO, ref: ImageRef, max_pixels: int) -> Header:
    if is_volume(ref.path):
        found = nifti.read_slice_header(ref)
        return Header("NIfTI", found.size, found.bits, "nifti", upright=True, frames=found.slices, notes=found.notes)
    head = stream.read(dicom.HEAD_BYTES)
    stream.seek(0)
    if dicom.is_dicom(head, ref.path):
        size, bits, frames = dicom.read_header_fields(stream, ref)
        return Header("DICOM", size, bits, "dicom", upright=True, frames=frames)
    if head[:4] in tiff.MAGIC:
        return _tiff_header(stream, ref)
    return _pillow_header(
        stream, ref, max_pixels, png_bits=int.from_bytes(head[24:25]) if head.startswith(PNG_START) else 0
    )


def _tiff_header(stream: BinaryIO, ref: ImageRef) -> Header:
    try:
        page = tiff.read_page(stream, ref.frame)
    except tiff.NoSuchPageError as error:
        if not error.pages:
            raise unreadable_image(ref.path, *TRUNCATED) from error
        raise unreadable_image(ref.path, *NO_FRAME, f"frame {ref.frame} of {error.pages}") from error
    except ValueError as error:
        rule = "the TIFF directory must be complete"
        raise unreadable_image(ref.path, "images.tiff_directory_damaged", rule, str(error)) from error
    # Orientations 5 to 8 are turned by a quarter, so the upright image has its sides swapped.
    size = page.size[::-1] if page.orientation >= 5 else page.size
    decoder: Decoder = "opencv" if page.deep else "pillow"
    return Header("TIFF", size, page.bits, decoder, page.orientation, True, page, tiff.count_pages(stream))


def _pillow_header(stream: BinaryIO, ref: ImageRef, max_pixels: int, png_bits: int) -> Header:
    _allow_pixels(max_pixels)
    try:
        with open_with_pillow(stream) as image:
            orientation = _orientation(image)
            size = image.size[::-1] if orientation >= 5 else image.size
            name, mode = image.format or "unknown", image.mode
            # Plain grey and RGB go to OpenCV, which is faster. Palettes and transparency are left to Pillow.
            plain = mode in ("L", "RGB") and "transparency" not in image.info
            # The further frames of an MPO are previews and depth maps.
            frames = 1 if name == "MPO" else int(getattr(image, "n_frames", 1))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(ref, max_pixels, "far more") from None
    except MALFORMED_BY_PILLOW as error:
        raise _unknown_format(stream, ref, error) from error
    if ref.frame >= frames:
        raise unreadable_image(ref.path, *NO_FRAME, f"frame {ref.frame} of {frames}")
    bits = png_bits or (16 if mode.startswith("I;16") else BITS_OF_MODE.get(mode, 8))
    fast = bits == 16 if name == "PNG" and bits != 8 else plain and name in ("PNG", "JPEG")
    return Header(name, size, bits, "opencv" if fast and frames == 1 else "pillow", orientation, frames=frames)


def _unknown_format(stream: BinaryIO, ref: ImageRef, error: Exception) -> ImageError:
    """Return the error for a file that Pillow does not open, with its format if that is a well-known one."""
    stream.seek(0)
    head = stream.read(64)
    low = head.lstrip().lower()
    names = (name for start, at, name in OTHER_FORMATS if head[at:].startswith(start) or low[at:].startswith(start))
    rule = f"the file must be an image of a known format ({', '.join(PILLOW_FORMATS)}, DICOM or NIfTI)"
    # Pillow's message that it knows no format has only the path.
    other = f"a file that begins with {head[:8]!r}" if isinstance(error, UnidentifiedImageError) else first_line(error)
    return unreadable_image(ref.path, "images.format_unknown", rule, next(names, other))


def _allow_pixels(max_pixels: int) -> None:
    """Raise Pillow's process-wide pixel limit to ``max_pixels``, and never lower it."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation if it is available without decoding.

    Pillow would decode a whole PNG to look for EXIF data after its pixels.
    """
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    orientation = image.getexif().get(tiff.ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def _has_its_end(stream: BinaryIO, header: Header) -> bool:
    """Return whether the file reaches its end marker. Formats without a cheap marker return True."""
    size = stream.seek(0, os.SEEK_END)
    if header.page is not None:
        return size >= header.page.needed
    if header.format == "PNG":
        return _tail(stream, size, 12).endswith(PNG_END) or PNG_END in _tail(stream, size, TAIL)
    if header.format in ("JPEG", "MPO"):
        # A thumbnail in the EXIF data before the image has an end marker of its own.
        return b"\xff\xd9" in _tail(stream, size, min(TAIL, size - _jpeg_scan(stream)))
    if header.format == "WEBP":
        stream.seek(4)
        return size >= 8 + int(struct.unpack("<I", stream.read(4))[0])
    return True


def _jpeg_scan(stream: BinaryIO) -> int:
    """Return the offset of the first scan of a JPEG, which follows its metadata. 0: the segments are damaged."""
    at = 2
    while True:
        stream.seek(at)
        head = stream.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            return 0
        if head[1] == 0xDA:
            return at
        # Fill bytes, and markers without a segment
        at += 1 if head[1] == 0xFF else 2 if head[1] in (0x01, *range(0xD0, 0xD9)) else 2 + int.from_bytes(head[2:])


def _tail(stream: BinaryIO, size: int, length: int) -> bytes:
    stream.seek(max(0, size - length))
    return stream.read(length)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, with its type."""
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
