"""pydicom's decoding plugin for imagecodecs: compressed DICOM frames to bytes (extra ``dicom``).

pydicom has plugins for other decoders only, and none of these fits: Pillow and GDCM do not decode all JPEG syntaxes,
GDCM ends the process on some damaged frames, and pylibjpeg-libjpeg is under the GPL. pydicom finds the functions of a
plugin by name (see its guide on decoder plugins). Importing this module adds the plugin to pydicom.
"""

import struct
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.pixels import get_decoder

try:
    import imagecodecs
except ImportError:  # dicom.py raises the error that names the extra
    imagecodecs = None

NAME = "imagecodecs"

JPEG = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1})
JPEG_LS = frozenset({uid.JPEGLSLossless, uid.JPEGLSNearLossless})
JPEG_2000 = frozenset({uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K})

DECODER_DEPENDENCIES = dict.fromkeys((*JPEG, *JPEG_LS, *JPEG_2000), (NAME,))
"""Transfer syntax -> packages. pydicom requires this name."""

JP2 = b"\0\0\0\x0cjP  "
"""Beginning of a JP2 file."""

START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"


def plugin_of(syntax: str) -> str:
    """Return the name of the only plugin that decodes a transfer syntax. Empty: pydicom needs none, or has no decoder.

    pydicom would otherwise use whichever plugin is installed, and lossy frames would depend on the machine.
    """
    return NAME if syntax in DECODER_DEPENDENCIES else "pydicom" if syntax == uid.RLELossless else ""


def is_available(syntax: str) -> bool:
    """Return whether the plugin decodes a transfer syntax. pydicom requires this name."""
    return imagecodecs is not None and syntax in DECODER_DEPENDENCIES


def check_boxes(frame: bytes) -> None:
    """Raise ValueError if the boxes of a JP2 file do not lead to its codestream. pydicom would search it forever.

    Source: ISO/IEC 15444-1, annex I. A frame should be a codestream alone, but some devices store a JP2 file.
    """
    at = 0 if frame.startswith(JP2) else len(frame)
    while at < len(frame):
        length, kind = struct.unpack(">I4s", frame[at : at + 8].ljust(8, b"\0"))
        if kind == b"jp2c":
            return
        if length < 8:  # 0 is the rest of the file, and 1 announces 64 bits: only the codestream needs them
            raise ValueError("the boxes of the JP2 file are damaged")
        at += length


def decode_frame(frame: bytes, runner: Any) -> bytes:
    """Return the decoded samples of one frame, by pixel, as pydicom's ``DecodeRunner`` describes them afterwards.

    Raises:
        RuntimeError: The frame is damaged.
        ValueError: The frame is truncated, or its size differs from the header's.
    """
    syntax, samples = runner.transfer_syntax, runner.samples_per_pixel
    if syntax not in JPEG_2000 and frame.rfind(END_OF_IMAGE) < frame.rfind(START_OF_SCAN):
        # libjpeg-turbo would fill the missing rows with grey. OpenJPEG reports them itself.
        raise ValueError("the frame is truncated")
    # JPEG 2000 and JPEG-LS can have other bits than the header. Bits above those of the header have no meaning.
    stored = runner.bits_stored
    bits = runner.get_option("j2k_precision" if syntax in JPEG_2000 else "jls_precision", stored)
    shape = (runner.rows, runner.columns, samples) if samples > 1 else (runner.rows, runner.columns)
    planar = samples > 1 and syntax in JPEG_LS and _samples_in_scan(frame) == 1
    # The decoders compare the frame's size with this array before they allocate memory or decode.
    kind = "u1" if bits <= 8 else "u2" if bits <= 16 else "u4"
    values = np.empty((samples, *shape[:2]) if planar else shape, kind)
    if syntax in JPEG_2000:
        imagecodecs.jpeg2k_decode(frame, out=values)
        runner.set_option("j2k_precision", min(bits, stored))
        if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):  # OpenJPEG has converted them
            runner.set_option("photometric_interpretation", "RGB")
    elif syntax in JPEG_LS:
        imagecodecs.jpegls_decode(frame, out=values)
        runner.set_option("jls_precision", min(bits, stored))
    else:
        # The same colour space on both sides converts nothing. pydicom converts YBR by the header.
        colours = {"colorspace": "YCBCR", "outcolorspace": "YCBCR"} if samples == 3 else {}
        imagecodecs.jpeg8_decode(frame, out=values, **colours)
    runner.set_option("bits_allocated", 8 * values.itemsize)
    if samples > 1:
        runner.set_option("planar_configuration", 0)
    return (np.moveaxis(values, 0, -1) if planar else values).tobytes()


def _samples_in_scan(frame: bytes) -> int:
    """Return the number of samples in the first scan of a JPEG-LS frame. It is 1 if each colour has its own scan."""
    return frame[frame.index(START_OF_SCAN) + 4]


for _syntax in DECODER_DEPENDENCIES:  # at import, because pydicom's add_plugin is not thread-safe
    get_decoder(_syntax).add_plugin(NAME, (__name__, "decode_frame"))
