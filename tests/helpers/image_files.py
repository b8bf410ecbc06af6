"""Bytes of images that Pillow and OpenCV cannot write."""

import struct
import zlib
from typing import Literal

import numpy as np

from toolkit.images import ImagePolicy
from toolkit.images.window import Array

AS_IT_IS = ImagePolicy(max_side=4096)


def tiff_bytes(
    values: Array,
    order: Literal["<", ">"] = "<",
    photometric: int | None = None,
    orientation: int = 1,
    extra: int | None = None,
    separate: bool = False,
) -> bytes:
    """Return an uncompressed TIFF of any number type and byte order, as TIFF 6.0 defines it."""
    height, width = values.shape[:2]
    samples = 1 if values.ndim == 2 else values.shape[2]
    photometric = (1 if samples < 3 else 2) if photometric is None else photometric
    laid = np.moveaxis(values, 2, 0) if separate else values
    body = laid.astype(values.dtype.newbyteorder(order)).tobytes()
    strips = samples if separate else 1
    part = values.nbytes // strips
    body += b"\0" * (len(body) % 2)
    shorts = {
        258: [values.dtype.itemsize * 8] * samples,
        259: [1],
        262: [photometric],
        274: [orientation],
        277: [samples],
        284: [2 if separate else 1],
        339: [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * samples,
    }
    longs = {256: [width], 257: [height], 278: [height]}
    longs |= {273: [8 + i * part for i in range(strips)], 279: [part] * strips}
    shorts |= {} if extra is None else {338: [extra]}
    directory, behind = b"", b""
    at = 8 + len(body)
    base = at + 2 + 12 * (len(shorts) + len(longs)) + 4
    for tag, numbers in sorted({**shorts, **longs}.items()):
        letter, kind = ("H", 3) if tag in shorts else ("I", 4)
        raw = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        field = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(order + "I", base + len(behind))
        behind += raw.ljust((len(raw) + 1) // 2 * 2, b"\0") if len(raw) > 4 else b""
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + field
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, at)
    count = struct.pack(order + "H", len(shorts) + len(longs))
    return head + body + count + directory + struct.pack(order + "I", 0) + behind


def png16_bytes(values: Array) -> bytes:
    """Return a 16-bit PNG of grey, grey with alpha, RGB or RGB with alpha."""
    height, width = values.shape[:2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
