"""Decode bytes to pixels at their stored bit depth.

OpenCV decodes deep and common formats. Pillow decodes palettes, CMYK, alpha and all other formats.
"""

import io
import struct

import cv2
import numpy as np
from PIL import Image

from toolkit.errors import ImageError
from toolkit.images import tiff
from toolkit.images.header import MALFORMED_BY_PILLOW, Header, first_line, open_with_pillow
from toolkit.images.ref import ImageRef, unreadable_image
from toolkit.images.window import Array, Pixels

# Our errors name the file. OpenCV's log on stderr would repeat them without the name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

SAMPLE_KIND = {tiff.UNSIGNED: "u", tiff.SIGNED: "i", tiff.FLOAT: "f"}
PLAIN_PHOTOMETRICS = {tiff.WHITE_IS_ZERO, tiff.BLACK_IS_ZERO, tiff.RGB, tiff.PALETTE, tiff.CMYK, tiff.YCBCR}
TIFF_UNSUPPORTED = "images.tiff_layout_unsupported"
WITH_ALPHA = {"LA", "PA", "La", "RGBA", "RGBa"}


def decode(data: bytes, header: Header, ref: ImageRef) -> Pixels:
    """Return the pixels of frame ``ref.frame``. An 8-bit alpha channel is already composited over black.

    Raises:
        ImageError: The file is corrupt, or neither library decodes its format without loss.
    """
    if header.format == "PNG" and not _chunks_fit(data):
        rule = "the chunks of a PNG file must fit into the file"
        raise unreadable_image(ref.path, "images.png_chunks_damaged", rule)
    return _with_opencv(data, header, ref) if header.decoder == "opencv" else _with_pillow(data, header, ref)


def _chunks_fit(data: bytes) -> bool:
    """Return whether the PNG chunks lead to the end marker. OpenCV 5 allocates up to 4 GiB for a false chunk length."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return True
        at += 12 + length
    return False


def _with_opencv(data: bytes, header: Header, ref: ImageRef) -> Pixels:
    if header.page is not None:
        _require_plain_page(header.page, ref)
    try:
        values = _opencv_values(data, ref.frame)
    except cv2.error as error:
        raise _not_decodable(header, ref, first_line(error)) from error
    if values is None:
        raise _not_decodable(header, ref, "damaged or truncated pixel data")
    _require_what_was_announced(values, header, ref)
    inverted = header.page is not None and header.page.photometric == tiff.WHITE_IS_ZERO
    if values.ndim == 3 and values.shape[2] == 4:
        alpha = _alpha(values[..., 3], header)
        transparent = 0.0 if alpha is None else float(np.mean(alpha < 1))
        colours = np.ascontiguousarray(values[..., :3])
        return Pixels(colours, header.bits, alpha=alpha if transparent else None, transparent=transparent, bgr=True)
    return Pixels(values, header.bits, inverted=inverted, bgr=values.ndim == 3)


def _opencv_values(data: bytes, frame: int) -> Array | None:
    buffer = np.frombuffer(data, np.uint8)
    if not frame:
        return cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    found, pages = cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED, range=(frame, frame + 1))
    return pages[0] if found and pages else None


def _require_plain_page(page: tiff.TiffPage, ref: ImageRef) -> None:
    """Reject TIFF layouts that OpenCV misreads, such as CMYK (read as RGB with alpha) or separate planes."""
    samples = {tiff.WHITE_IS_ZERO: (1,), tiff.BLACK_IS_ZERO: (1,), tiff.RGB: (3, 4)}.get(page.photometric, ())
    if page.samples not in samples or (page.separate and page.samples > 1):
        rule = "a TIFF of more than 8 bits must be grey, RGB or RGB with alpha, its channels pixel by pixel"
        raise unreadable_image(ref.path, TIFF_UNSUPPORTED, rule, str(page))
    if page.sample_format not in SAMPLE_KIND or (page.sample_format == tiff.FLOAT and page.bits not in (32, 64)):
        rule = "the numbers of a TIFF must be integers, or floats of 32 or 64 bits"
        raise unreadable_image(ref.path, TIFF_UNSUPPORTED, rule, str(page))


def _require_what_was_announced(values: Array, header: Header, ref: ImageRef) -> None:
    """Compare the decoded array to the header. A decoder can silently fall back to fewer bits or another sign."""
    page = header.page
    kind = "u" if page is None else SAMPLE_KIND.get(page.sample_format, "?")
    size = 1 if header.bits <= 8 else 2 if header.bits <= 16 else header.bits // 8
    shape = header.size[::-1] if header.orientation < 5 or header.upright else header.size
    if (values.dtype.kind, values.dtype.itemsize, values.shape[:2]) != (kind, size, shape):
        got = f"{values.dtype} {values.shape[1]} x {values.shape[0]}"
        width, height = shape[::-1]
        rule = f"the {header.format} file must decode to what its header says ({kind}{size * 8} {width} x {height})"
        raise unreadable_image(ref.path, "images.decoded_unlike_header", rule, got)


def _alpha(channel: Array, header: Header) -> Array | None:
    """Return opacity in [0, 1], or None if there is no alpha channel or the colours are premultiplied."""
    # Premultiplied colours are already composited over black.
    if header.page is not None and header.page.extra != tiff.ALPHA_APART:
        return None
    opaque = np.iinfo(channel.dtype).max if channel.dtype.kind in "iu" else 1
    return (channel / np.float32(opaque)).clip(0, 1).astype(np.float32)


def _with_pillow(data: bytes, header: Header, ref: ImageRef) -> Pixels:
    if header.page is not None and header.page.photometric not in PLAIN_PHOTOMETRICS:
        rule = "a TIFF must be grey, RGB, YCbCr or CMYK, or have a palette"
        raise unreadable_image(ref.path, TIFF_UNSUPPORTED, rule, str(header.page))
    try:
        with open_with_pillow(io.BytesIO(data)) as image:
            image.seek(ref.frame)
            image.load()
            return _pillow_pixels(image, header.bits)
    except ImageError:
        raise
    except MALFORMED_BY_PILLOW as error:
        raise _not_decodable(header, ref, first_line(error)) from error


def _not_decodable(header: Header, ref: ImageRef, found: str) -> ImageError:
    layout = "" if header.page is None else f" ({header.page})"
    return unreadable_image(
        ref.path, "images.not_decodable", f"the {header.format} file{layout} must be decodable", found
    )


def _pillow_pixels(image: Image.Image, bits: int) -> Pixels:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        return Pixels(values.astype(values.dtype.newbyteorder("="), copy=False), bits)
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        whole = image.convert("RGBA")
        transparent = float(np.mean(np.asarray(whole.getchannel("A")) < 255))
        black = Image.new("RGBA", whole.size, (0, 0, 0, 255))
        return Pixels(np.asarray(Image.alpha_composite(black, whole).convert("RGB")), bits, transparent=transparent)
    return Pixels(np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")), bits)
