"""DICOM: one frame as grey values with its own window, or as RGB (extra ``dicom``: pydicom and imagecodecs).

Grey values go through the modality transform (rescale or LUT, PS3.3 C.11.1). If the policy uses the file's own window,
they then go through its first VOI LUT or window (PS3.3 C.11.2). Enhanced multi-frame files have both in functional
groups.
"""

import os
import struct
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from toolkit.errors import ImageError, MissingExtraError
from toolkit.images.ref import NO_FRAME, REPAIR, TRUNCATED, ImageRef, unreadable_image
from toolkit.images.window import Array, Pixels

SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})
"""File suffixes of DICOM. Old files can lack the DICM marker and are recognized by their suffix."""

GROUPS = ("FrameVOILUTSequence", "PixelValueTransformationSequence")

MALFORMED = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, NotImplementedError),
    *(EOFError, RuntimeError, struct.error, zlib.error),
)
"""Exceptions of pydicom and its decoders for malformed files, besides pydicom's own errors."""

DECODABLE = "the DICOM file must be decodable"
CONVERT = "If other DICOM software opens the file, convert it to Explicit VR Little Endian."

HEAD_BYTES = 132
"""Bytes at the start of a file by which ``is_dicom`` recognizes it."""


def is_dicom(head: bytes, path: Path) -> bool:
    """Return whether to read a file as DICOM. ``head`` has its first ``HEAD_BYTES`` or more."""
    return head[128:132] == b"DICM" or path.suffix.lower() in SUFFIXES


def read_header_fields(stream: BinaryIO, ref: ImageRef) -> tuple[tuple[int, int], int, int]:
    """Return ((width, height), bits stored, frames) without decoding, after checking that the pixel data is complete.

    Raises:
        ImageError: The file has no image, lacks the frame, or is truncated.
        MissingExtraError: pydicom is not installed.
    """
    pydicom = _pydicom()
    try:
        data = pydicom.dcmread(stream, defer_size=4096, force=ref.path.suffix.lower() in SUFFIXES)
        frames, size = int(data.get("NumberOfFrames") or 1), (int(data.Columns), int(data.Rows))
        bits = int(data.BitsStored)
        complete = _pixels_are_complete(pydicom, data, stream)
    except _malformed(pydicom) as error:
        # Report only the type of the error: pydicom's message can quote patient data.
        rule = "the DICOM file must have an image"
        raise unreadable_image(ref.path, "images.dicom_without_image", rule, type(error).__name__) from error
    if not complete:
        raise unreadable_image(ref.path, *TRUNCATED)
    if ref.frame >= frames:
        raise unreadable_image(ref.path, *NO_FRAME, f"frame {ref.frame} of {frames}")
    return size, bits, frames


def read_pixels(stream: BinaryIO, ref: ImageRef, own_window: bool) -> Pixels:
    """Return frame ``ref.frame``: grey values in the file's units, or RGB of 8 or 16 bits.

    Args:
        stream: The open file.
        ref: The frame, and the path for error messages.
        own_window: Whether to apply the file's VOI LUT or return its window.

    Raises:
        ImageError: The file is malformed, or its transfer syntax has no decoder.
        MissingExtraError: pydicom, or the decoder for this compression, is not installed.
    """
    pydicom = _pydicom()
    try:
        data = pydicom.dcmread(stream, force=ref.path.suffix.lower() in SUFFIXES)
        stored = _decode(pydicom, data, ref)
        _adopt_groups(data, ref.frame)
        return _colour(pydicom, stored, data) or _grey(pydicom, stored, data, own_window)
    except _malformed(pydicom) as error:
        raise unreadable_image(ref.path, "images.not_decodable", DECODABLE, type(error).__name__) from error


def _decode(pydicom: ModuleType, data: Any, ref: ImageRef) -> Array:
    """Return the stored values of one frame in the machine's byte order. One decoder per syntax keeps runs comparable.

    Raises:
        ImageError: The frame is damaged, or its transfer syntax has no decoder.
        MissingExtraError: The decoder for this compression is not installed.
    """
    from toolkit.images import dicom_frames  # it imports pydicom, which is an extra

    syntax = data.file_meta.TransferSyntaxUID
    plugin = dicom_frames.plugin_of(syntax)
    if plugin and plugin not in pydicom.pixels.get_decoder(syntax).available_plugins:
        raise MissingExtraError(plugin, "dicom", f"decoding {syntax.name} in DICOM")
    try:
        if syntax in dicom_frames.JPEG_2000:
            dicom_frames.check_boxes(_frame(pydicom, data, ref.frame))
        stored: Array = pydicom.pixels.pixel_array(data, index=ref.frame, decoding_plugin=plugin)
    except _malformed(pydicom) as error:
        # The decoder's own message is the last line. Messages about the header could quote patient data.
        lines = str(error).splitlines() if isinstance(error, RuntimeError) else []
        value = f"{syntax.name}: {lines[-1].strip() if lines else type(error).__name__}"
        remedy = f"{CONVERT} {REPAIR}" if _is_encapsulated(syntax) else REPAIR
        raise ImageError("images.not_decodable", DECODABLE, place=ref.path, value=value, remedy=remedy) from error
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _frame(pydicom: ModuleType, data: Any, index: int) -> bytes:
    """Return the bytes of a compressed frame."""
    offsets = [data.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    frame: bytes = pydicom.encaps.get_frame(
        data.PixelData,
        index,
        number_of_frames=int(data.get("NumberOfFrames") or 1),
        extended_offsets=tuple(offsets) if all(offsets) else None,
    )
    return frame


def _pydicom() -> ModuleType:
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.pixels
    except ImportError:
        raise MissingExtraError("pydicom", "dicom", "reading DICOM") from None
    return pydicom  # type: ignore[no-any-return]


def _malformed(pydicom: ModuleType) -> tuple[type[Exception], ...]:
    return *MALFORMED, pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException


def _pixels_are_complete(pydicom: ModuleType, data: Any, stream: BinaryIO) -> bool:
    """Return whether the pixel data has its expected length. pydicom omits compressed data without an end marker."""
    keyword = next((name for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in data), "")
    if not keyword:
        return False
    raw = data.get_item(keyword)
    if _is_encapsulated(data.file_meta.TransferSyntaxUID):
        return True
    length = raw.length if hasattr(raw, "length") else len(raw.value)
    due = int(pydicom.pixels.utils.get_expected_length(data))
    begin = raw.value_tell if hasattr(raw, "value_tell") else raw.file_tell
    deflated = data.file_meta.TransferSyntaxUID.is_deflated
    return due <= length and (deflated or begin + due <= stream.seek(0, os.SEEK_END))


def _is_encapsulated(syntax: Any) -> bool:
    """Return whether a transfer syntax is compressed. Syntaxes that pydicom does not know are private or newer ones."""
    return not syntax.is_transfer_syntax or bool(syntax.is_encapsulated)


def _adopt_groups(data: Any, frame: int) -> None:
    """Copy the window and rescale of this frame from functional groups to where plain files have them."""
    shared, each = data.get("SharedFunctionalGroupsSequence"), data.get("PerFrameFunctionalGroupsSequence")
    for group in [*(shared or [])[:1], *(each or [])[frame : frame + 1]]:
        for name in GROUPS:
            for item in (group.get(name) or [])[:1]:
                data.update(item)


def _colour(pydicom: ModuleType, stored: Array, data: Any) -> Pixels | None:
    """Return RGB or the 8-bit colours of a palette, or None for grey. pydicom has already converted YBR to RGB."""
    if data.PhotometricInterpretation == "PALETTE COLOR":
        colours = pydicom.pixels.apply_color_lut(stored, data)[..., :3]
        return Pixels((colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours, 8)
    return Pixels(stored, int(data.BitsStored)) if stored.ndim == 3 else None


def _grey(pydicom: ModuleType, stored: Array, data: Any, own_window: bool) -> Pixels:
    bits = int(data.get("BitsStored") or stored.dtype.itemsize * 8)
    if bits < 8 and stored.dtype == np.uint8:  # a segmentation of one bit would be nearly black in 8 bits
        stored = stored * np.uint8(255 // (2**bits - 1))
    padding = _padding(stored, data)  # in stored values, before the rescale
    values = pydicom.pixels.apply_modality_lut(stored, data) if _is_transformed(data) else stored
    window = None
    if own_window:
        values, window = _own_window(pydicom, values, data)
    inverted = data.PhotometricInterpretation == "MONOCHROME1"
    return Pixels(values, bits, window=window, hidden=padding, inverted=inverted, hounsfield=_is_hounsfield(data))


def _is_hounsfield(data: Any) -> bool:
    """Return whether the rescaled values are in Hounsfield units (PS3.3 C.11.1.1.2, C.8.2.1)."""
    unit = str(data.get("RescaleType") or "").upper()
    if unit in ("HU", "HU_MOD"):
        return True
    # The type is required only if it is not HU, and only CT has a rescale to HU.
    rescaled = data.get("RescaleSlope") is not None and data.get("RescaleIntercept") is not None
    return data.get("Modality") == "CT" and rescaled and unit in ("", "US")


def _is_transformed(data: Any) -> bool:
    """Return whether the modality transform changes any value. Skipping an identity keeps fast integers."""
    identity = (float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)) == (1.0, 0.0)
    return bool(data.get("ModalityLUTSequence")) or not identity


def _padding(stored: Array, data: Any) -> Array | None:
    """Return a mask of padding pixels (PS3.3 C.7.5.1.1.2), or None if there is no padding."""
    first = data.get("PixelPaddingValue")
    if first is None:
        return None
    last = data.get("PixelPaddingRangeLimit")
    low, high = sorted((int(first), int(first if last is None else last)))
    hidden = (stored >= low) & (stored <= high)
    return hidden if hidden.any() and not hidden.all() else None


def _own_window(pydicom: ModuleType, values: Array, data: Any) -> tuple[Array, tuple[float, float] | None]:
    """Return the values and the window (low, high) of the file. The window is None if the file has none."""
    # A file can have both a table and a window. As in pydicom, the table takes precedence.
    table = (data.get("VOILUTSequence") or [None])[0]
    if table is not None and "LUTDescriptor" in table and "LUTData" in table:
        whole = values if values.dtype.kind in "iu" else np.rint(values).astype(np.int32)
        return pydicom.pixels.apply_voi(whole, data), (0.0, float(2 ** int(table.LUTDescriptor[2]) - 1))
    centre, width = _first(data.get("WindowCenter")), _first(data.get("WindowWidth"))
    function = str(data.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or width < (1 if function == "LINEAR" else 1e-9):
        return values, None
    if function == "SIGMOID":
        # PS3.3 C.11.2.1.3.1. The curve is not a window, so it is applied here, and its range 0 to 1 is the window.
        return 1 / (1 + np.exp(-4 * (values.astype(np.float64) - centre) / width)), (0.0, 1.0)
    if function == "LINEAR":
        # PS3.3 C.11.2.1.2.1: LINEAR reaches (width - 1) / 2 to both sides of centre - 0.5, unlike LINEAR_EXACT.
        centre, width = centre - 0.5, width - 1
    return values, (centre - width / 2, centre + width / 2)


def _first(value: Any) -> float | None:
    """Return the first number of a DICOM element, or None if it is absent or empty."""
    numbers = list(value) if isinstance(value, (list, tuple)) or hasattr(value, "__iter__") else [value]
    return None if not numbers or numbers[0] in (None, "") else float(numbers[0])
