"""The result of reading the rows and scanning the images, as ``stages/data/done.json`` and results.json store it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.data import RowCount
from toolkit.data.splits import Leak
from toolkit.recipe import Recipe


@dataclass(frozen=True, slots=True)
class UnusableImage:
    """An image that cannot be used: the hash of its path, the frame, why, and the first row that has it."""

    path: str
    frame: int
    problem: str
    row: str = ""


@dataclass(frozen=True, slots=True)
class ImageScan:
    """The scan of the images (``toolkit.images.ScanReport``).

    Attributes:
        scan: the mode: full, header or off.
        checked: number of distinct images.
        formats: format -> number of usable images.
        bits: bits per channel -> number of usable images.
        windowed: number of images above 8 bits, which a window reduces to 8 bits (full scan).
        clipped: number of these with pixels outside their window.
        worst_clipped: largest fraction of such pixels in an image, from 0 to 1.
        unusable: the images that cannot be used.
    """

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
        sources: the sources that were read, as ``source_times`` returns them. Empty: not saved.
        whole: columns whose whole numbers were read without a decimal point. A prediction reads them in the same way.
    """

    rows: Mapping[str, int]
    dropped: tuple[RowCount, ...]
    leaks: tuple[Leak, ...]
    warnings: tuple[str, ...]
    images: ImageScan
    found: Mapping[str, Any]
    group_columns: tuple[str, ...] = ()
    sources: Mapping[str, int] = field(default_factory=dict)
    whole: tuple[str, ...] = ()

    def has_other_sources(self, recipe: Recipe) -> bool:
        """Return whether a recipe names other sources, or one of them has changed. A file can be missing by now."""
        times = source_times(recipe)
        return bool(self.sources) and (
            times.keys() != self.sources.keys()
            or any(time and self.sources[name] and time != self.sources[name] for name, time in times.items())
        )


def source_times(recipe: Recipe) -> dict[str, int]:
    """Return the key and source of each split and of the images -> time of the last change in ns. 0: it is no file."""
    keys = ("train", "validation", "test", "image_root")
    named = {key: str(value) for key in keys if (value := getattr(recipe.dataset, key)) is not None}
    return {f"{key}: {name}": _time_of(Path(name).expanduser()) for key, name in named.items()}


def _time_of(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0
