"""Fields of a TIFF page, read strictly and without decoding (TIFF 6.0 and BigTIFF)."""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

WIDTH, HEIGHT, BITS, PHOTOMETRIC, OFFSETS, ORIENTATION = 256, 257, 258, 262, 273, 274
SAMPLES, COUNTS, PLANAR, TILE_OFFSETS, TILE_COUNTS, EXTRA, SAMPLE_FORMAT = 277, 279, 284, 324, 325, 338, 339
WANTED = {
    *(WIDTH, HEIGHT, BITS, PHOTOMETRIC, OFFSETS, ORIENTATION),
    *(SAMPLES, COUNTS, PLANAR, TILE_OFFSETS, TILE_COUNTS, EXTRA, SAMPLE_FORMAT),
}
NUMBER = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""TIFF field types of integers -> format character of ``struct``."""

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
ALPHA_APART = 2
"""Value of ExtraSamples for colours that are not premultiplied by alpha."""


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

    @property
    def deep(self) -> bool:
        """Whether values have more than 8 bits, a sign or floats, which Pillow would lose."""
        return self.bits > 8 or self.sample_format != UNSIGNED


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
    )


def _tags(stream: BinaryIO, frame: int) -> dict[int, tuple[int, ...]]:
    """Return tag -> numbers of one page."""
    stream.seek(0)
    head = stream.read(16)
    order, big = "<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+")
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
