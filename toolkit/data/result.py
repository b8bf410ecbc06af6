"""The result of reading the rows and scanning the images, as ``stages/data/done.json`` and results.json store it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.data import Dropped
from toolkit.data.splits import Leak


@dataclass(frozen=True, slots=True)
class UnusableImage:
    """An image that cannot be used: its path, the frame, why, and the first row that has it."""

    path: str
    frame: int
    problem: str
    row: str = ""


@dataclass(frozen=True, slots=True)
class ImageScan:
    """The scan of the images. See ``toolkit.images.ScanReport`` for the counts."""

    scan: str
    checked: int
    formats: Mapping[str, int]
    bits: Mapping[int, int]
    windowed: int
    clipped: int
    worst_clipped: float
    unusable: tuple[UnusableImage, ...]


@dataclass(frozen=True, slots=True)
class DataResult:
    """The data of a run.

    Attributes:
        rows: split -> number of usable rows.
        dropped: unusable rows by reason.
        leaks: groups, images, or pairs of image and question in two splits.
        warnings: warnings about the rows.
        images: the scan of the images.
        found: settings of the task that its rows decide, such as the classes.
        group_columns: columns of the group. A model card must not have their values.
    """

    rows: Mapping[str, int]
    dropped: tuple[Dropped, ...]
    leaks: tuple[Leak, ...]
    warnings: tuple[str, ...]
    images: ImageScan
    found: Mapping[str, Any]
    group_columns: tuple[str, ...] = ()
