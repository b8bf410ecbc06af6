"""Fields of a TIFF page, read strictly and without decoding (TIFF 6.0 and BigTIFF)."""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, ORIENTATION = 256, 257, 258, 259, 262, 273, 274
SAMPLES, COUNTS, PLANAR, TILE_OFFSETS, TILE_COUNTS, EXTRA, SAMPLE_FORMAT = 277, 279, 284, 324, 325, 338, 339
WANTED = {
    *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, ORIENTATION),
    *(SAMPLES, COUNTS, PLANAR, TILE_OFFSETS, TILE_COUNTS, EXTRA, SAMPLE_FORMAT),
}
NUMBER = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""TIFF field types of integers -> format character of ``struct``."""

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
ALPHA_APART = 2
"""Value of ExtraSamples for colours that are not premultiplied by alpha."""


PHOTOMETRICS = {
    WHITE_IS_ZERO: "grey (white is zero)",
    BLACK_IS_ZERO: "grey",
    RGB: "RGB",
    PALETTE: "palette",
    4: "transparency mask",
    CMYK: "CMYK",
    YCBCR: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
SAMPLE_FORMATS = {UNSIGNED: "bits", SIGNED: "bits with a sign", FLOAT: "bits as floats", 4: "bits of undefined type"}
SAMPLE_FORMATS |= {5: "bits as complex integers", 6: "bits as complex floats"}
COMPRESSIONS = {
    1: "no",
    2: "CCITT",
    3: "CCITT fax 3",
    4: "CCITT fax 4",
    5: "LZW",
    6: "old JPEG",
    7: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}
"""Numbers of TIFF tags -> what a message calls them (TIFF 6.0, libtiff's tiff.h)."""

MAX_PAGES = 65_535


@dataclass(frozen=True, slots=True)
class TiffPage:
    """One page.

    ``separate`` means that each channel has its own plane. ``needed`` is the minimum file size in bytes that contains
    all pixel data.
    """

    size: tuple[int, int]
    bits: int
    samples: int
    sample_format: int
    photometric: int
    orientation: int
    separate: bool
    extra: int
    needed: int
    compression: int = 1
    tiled: bool = False

    def __str__(self) -> str:
        """Return the layout in words, for messages."""
        number = SAMPLE_FORMATS.get(self.sample_format, f"bits of sample format {self.sample_format}")
        colours = PHOTOMETRICS.get(self.photometric, f"photometric interpretation {self.photometric}")
        packed = COMPRESSIONS.get(self.compression, f"number {self.compression}")
        planes = " in separate planes" if self.separate and self.samples > 1 else ""
        channels = f"{self.samples} channel{'' if self.samples == 1 else 's'}"
        tiles = "tiled, " if self.tiled else ""
        return f"{colours}, {channels}{planes} of {self.bits} {number}, {tiles}{packed} compression"

    @property
    def deep(self) -> bool:
        """Whether values have more than 8 bits, a sign or floats, which Pillow would lose."""
        return self.bits > 8 or self.sample_format != UNSIGNED


def count_pages(stream: BinaryIO) -> int:
    """Return the number of pages, at most ``MAX_PAGES``. A damaged link ends the count."""
    stream.seek(0)
    head = stream.read(16)
    order, big = _layout(head)
    count_form, link_form, entry_size = ("Q", "Q", 20) if big else ("H", "I", 12)
    seen: set[int] = set()
    try:
        (at,) = struct.unpack_from(order + link_form, head, 8 if big else 4)
        while at and at not in seen and len(seen) < MAX_PAGES:
            stream.seek(at)
            (count,) = struct.unpack(order + count_form, stream.read(struct.calcsize(count_form)))
            seen.add(at)
            stream.seek(count * entry_size, os.SEEK_CUR)
            (at,) = struct.unpack(order + link_form, stream.read(struct.calcsize(link_form)))
    except (struct.error, OverflowError, OSError):
        pass
    return len(seen)


class NoSuchPageError(ValueError):
    """The file has only ``pages`` pages."""

    def __init__(self, pages: int) -> None:
        super().__init__(f"the TIFF has {pages} pages")
        self.pages = pages


def read_page(stream: BinaryIO, frame: int) -> TiffPage:
    """Return page ``frame``, counted from 0.

    Raises:
        NoSuchPageError: The file has fewer pages.
        ValueError: The directory of the page is incomplete.
    """
    try:
        tags = _tags(stream, frame)
        return _page(tags)
    except (struct.error, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"the TIFF directory of page {frame} is incomplete") from error


def _page(tags: dict[int, tuple[int, ...]]) -> TiffPage:
    offsets = tags.get(OFFSETS) or tags[TILE_OFFSETS]
    counts = tags.get(COUNTS) or tags[TILE_COUNTS]
    orientation = tags.get(ORIENTATION, (1,))[0]
    return TiffPage(
        size=(tags[WIDTH][0], tags[HEIGHT][0]),
        bits=max(tags.get(BITS, (1,))),
        samples=tags.get(SAMPLES, (1,))[0],
        sample_format=tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0],
        photometric=tags[PHOTOMETRIC][0],
        orientation=orientation if 1 <= orientation <= 8 else 1,
        separate=tags.get(PLANAR, (1,))[0] == 2,
        extra=tags.get(EXTRA, (0,))[0],
        needed=max((offset + count for offset, count in zip(offsets, counts, strict=False)), default=0),
        compression=tags.get(COMPRESSION, (1,))[0],
        tiled=TILE_OFFSETS in tags,
    )


def _tags(stream: BinaryIO, frame: int) -> dict[int, tuple[int, ...]]:
    """Return tag -> numbers of one page."""
    stream.seek(0)
    head = stream.read(16)
    order, big = _layout(head)
    count_form, entry_form, link_form = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    (at,) = struct.unpack_from(order + link_form, head, 8 if big else 4)
    for page in range(frame + 1):
        if not at:
            raise NoSuchPageError(page)
        stream.seek(at)
        (count,) = struct.unpack(order + count_form, stream.read(struct.calcsize(count_form)))
        entry = struct.Struct(order + entry_form)
        entries = stream.read(entry.size * min(count, 65_535))
        (at,) = struct.unpack(order + link_form, stream.read(struct.calcsize(link_form)))
    found = [entry.unpack_from(entries, i * entry.size) for i in range(count)]
    return {tag: _numbers(stream, order, *rest) for tag, *rest in found if tag in WANTED and rest[0] in NUMBER}


def _layout(head: bytes) -> tuple[str, bool]:
    """Return the byte order for ``struct``, and whether the file is a BigTIFF."""
    return "<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+")


def _numbers(stream: BinaryIO, order: str, kind: int, count: int, value: bytes) -> tuple[int, ...]:
    letter = NUMBER[kind]
    length = count * struct.calcsize(order + letter)
    if length > len(value):
        (at,) = struct.unpack(order + ("Q" if len(value) == 8 else "I"), value)
        if at + length > stream.seek(0, os.SEEK_END):  # a false count must not allocate memory
            raise ValueError("the TIFF directory points past the end of the file")
        stream.seek(at)
        value = stream.read(length)
    return struct.unpack_from(f"{order}{count}{letter}", value)
