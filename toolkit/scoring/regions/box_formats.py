"""Formats of boxes in rows, and which of them fits the boxes of a whole file.

Four numbers can be corners (Pascal VOC), a corner and a size (COCO), or a centre and a size (YOLO), in pixels or as
fractions of the image's sides. A wrong reading often looks plausible in a single row. Over a whole file, it puts some
box outside its image, reverses its corners, or leaves half of every image empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from toolkit.scoring.regions.boxes import Box, Size

ORDERS = ("xyxy", "xywh", "cxcywh", "yxyx")
"""Meanings of four numbers."""

UNITS = {"pixels": None, "unit": 1, "percent": 100, "thousand": 1000}
"""Unit -> the number at the right and lower edge of the image. None: its sides in pixels."""

KNOWN = (
    "xyxy",
    "xywh",
    "cxcywh",
    "xyxy unit",
    "xywh unit",
    "cxcywh unit",
    "xyxy percent",
    "xywh percent",
    "xyxy thousand",
    "yxyx thousand",
)
"""Formats that datasets, annotation tools and models write, which ``BoxEvidence`` checks. The others must be named."""

SWAPPED = "yxyx"
"""Format of scikit-image, in pixels. It fits the boxes of square images whenever ``xyxy`` does, so it must be named. It
is checked only to show it."""

TOLERANCE = 1.0
"""Pixels by which a box may leave its image, because annotation tools round corners. It is then cut at the edge."""

MIN_BOXES, MANY_BOXES = 10, 50
"""Fewest boxes whose extent is evidence that a unit leaves half or a part of the images empty. See ``BoxEvidence``."""

PARTIAL, FULL = 0.85, 0.95
"""With ``MANY_BOXES``, a unit whose boxes end before ``PARTIAL`` of a side is left out if those of another reach
``FULL``."""

LARGEST = 1.5
"""Largest number of a file of fractions, whose boxes can leave their image a little."""

SLIGHT = 0.1
"""Largest fraction of a side by which a box leaves its image if it is an inaccurate box, not one of another format."""

_EXAMPLES = 100
"""First boxes of a file that are kept for messages."""

_CHUNK = 4096
"""Boxes that are checked at a time."""


@dataclass(frozen=True, slots=True)
class BoxFormat:
    """A meaning of four numbers, and their unit."""

    order: str
    unit: str = "pixels"

    def __str__(self) -> str:
        return self.order if self.unit == "pixels" else f"{self.order} {self.unit}"

    def to_pixels(self, numbers: Sequence[float], size: Size) -> Box:
        """Return corners in pixels. Nothing is ordered or clipped.

        >>> BoxFormat("xywh").to_pixels((10, 20, 30, 40), (100, 100))
        (10, 20, 40, 60)
        >>> BoxFormat("cxcywh", "unit").to_pixels((0.5, 0.5, 0.5, 0.25), (800, 400))
        (200.0, 150.0, 600.0, 250.0)
        """
        x1, y1, x2, y2 = numbers if self.order != "yxyx" else (numbers[1], numbers[0], numbers[3], numbers[2])
        if (top := UNITS[self.unit]) is not None:
            width, height = size[0] / top, size[1] / top
            x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
        if self.order == "xywh":
            return x1, y1, x1 + x2, y1 + y2
        if self.order == "cxcywh":
            return x1 - x2 / 2, y1 - y2 / 2, x1 + x2 / 2, y1 + y2 / 2
        return x1, y1, x2, y2


XYXY = BoxFormat("xyxy")

BOX_FORMATS = {str(one): one for one in (BoxFormat(order, unit) for unit in UNITS for order in ORDERS)}
"""Name, such as ``xywh`` or ``cxcywh unit``, -> format."""


FoundBox = tuple[str, tuple[float, ...], Size]
"""Name of a row, the four numbers of a box, and the size of the image."""


@dataclass(slots=True)
class _Fit:
    """How the boxes of a file fit one format.

    The number of boxes that fit, that of boxes that leave their image slightly, the first that does not fit, and the
    extent of all.
    """

    fits: int = 0
    slight: int = 0
    misfit: FoundBox | None = None
    extent: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))


class BoxEvidence:
    """Collects the boxes of a file, and finds the formats that fit all of them.

    The formats are ``names``. One fits a box if its corners are ordered and inside the image, up to ``TOLERANCE``. In
    addition:

    - Numbers that are all at most ``LARGEST`` are not pixels, percent or thousandths.
    - With at least ``MIN_BOXES`` boxes, a unit that leaves the right or the lower half of all images empty is left out,
      if another unit does not. With ``MANY_BOXES``, the same holds for ``PARTIAL`` and ``FULL``. This never decides
      between two orders.

    A few inaccurate boxes must not decide the format of all others. See ``rivals``.
    """

    def __init__(self, names: Sequence[str] = KNOWN) -> None:
        self.count = 0
        self._examples: list[FoundBox] = []
        self._checked = tuple(names)
        shown = (SWAPPED,) if names is KNOWN else ()
        self._fits = {name: _Fit() for name in (*names, *shown)}
        self._largest = 0.0
        self._sizes = (float("inf"), 0.0)
        self._names: list[str] = []
        self._rows: list[tuple[float, ...]] = []

    def add(self, name: str, numbers: Sequence[float], size: Size) -> None:
        """Add a box of the row ``name``, whose image has this size."""
        x, y, z, w = numbers
        if len(self._examples) < _EXAMPLES:
            self._examples.append((name, (x, y, z, w), size))
        self._names.append(name)
        self._rows.append((x, y, z, w, *size))
        if len(self._rows) == _CHUNK:
            self._check()

    def fitting(self) -> list[BoxFormat]:
        """Return the formats that fit all boxes, without formats that put them at the same pixels as another."""
        self._check()
        found = [name for name in self._checked if self._fits[name].fits == self.count]
        formats = [BOX_FORMATS[name] for name in found if self._is_scale(BOX_FORMATS[name].unit)]
        if self.count >= MIN_BOXES:
            wide = self._units_beyond(0.5, formats)
            formats = [one for one in formats if one.unit in wide or not wide]
        if self.count >= MANY_BOXES and self._units_beyond(FULL, formats):
            wide = self._units_beyond(PARTIAL, formats)
            formats = [one for one in formats if one.unit in wide]
        return formats

    def rivals(self, found: Sequence[BoxFormat]) -> list[tuple[BoxFormat, int, FoundBox | None]]:
        """Return the formats that the file can have although they do not fit all boxes.

        Each comes with the number of boxes that fit, and the first that does not. ``found`` are the formats that fit.
        These are:

        - formats with the unit of one of ``found`` that fit all but 1 % of the boxes (at least one box), if each of
          the others leaves its image by at most ``SLIGHT``. This needs ``MIN_BOXES``.
        - formats in pixels that fit at least half of the boxes, if all of ``found`` are percent or thousandths, which
          fit nearly any numbers. ``SWAPPED`` is one of them.
        """
        units, inaccurate = {one.unit for one in found}, max(1, self.count // 100)
        relative = bool(units) and units <= {"percent", "thousand"}
        others = []
        for name, fit in self._fits.items():
            one, missing = BOX_FORMATS[name], self.count - fit.fits
            nearly = self.count >= MIN_BOXES and 0 < missing == fit.slight <= inaccurate
            half = relative and one.unit == "pixels" and 2 * fit.fits >= self.count
            same = nearly and one.unit in units and name in self._checked
            swapped = name == SWAPPED and not missing and min(fit.extent) > 0.5
            if same or (half and (missing or swapped)):
                others.append((one, fit.fits, fit.misfit))
        return others

    def fits_all(self, name: str) -> bool:
        """Return whether a format fits all boxes."""
        self._check()
        possible = name in self._fits and self._is_scale(BOX_FORMATS[name].unit)
        return possible and self._fits[name].fits == self.count

    def _units_beyond(self, fraction: float, formats: Sequence[BoxFormat]) -> set[str]:
        """Return the units whose boxes reach beyond a fraction of both sides."""
        return {one.unit for one in formats if min(self._fits[str(one)].extent) > fraction}

    def example(self, formats: Sequence[BoxFormat]) -> FoundBox | None:
        """Return one of the first boxes, if possible one that these formats put at different pixels."""
        different = (box for box in self._examples if len({one.to_pixels(*box[1:]) for one in formats}) == len(formats))
        return next(different, self._examples[0] if self._examples else None)

    def misfits(self) -> list[tuple[BoxFormat, int, FoundBox]]:
        """Return the formats that do not fit, the number of boxes that fit, and the first that does not.

        The format that fits most boxes is the first.
        """
        self._check()
        found = [(BOX_FORMATS[name], self._fits[name].fits, self._fits[name].misfit) for name in self._checked]
        return sorted(((one, fits, box) for one, fits, box in found if box is not None), key=lambda item: -item[1])

    def _is_scale(self, unit: str) -> bool:
        """Return whether the numbers can have this unit, and are not equal to pixels."""
        if unit == "unit":
            return True
        same = unit != "pixels" and self._sizes == (UNITS[unit], UNITS[unit])
        return self._largest > LARGEST and not same

    def _check(self) -> None:
        """Check the boxes since the last call against every format."""
        if not self._rows:
            return
        rows = np.array(self._rows)
        sides = rows[:, 4:6]
        for name, fit in self._fits.items():
            corners = _corners(BOX_FORMATS[name], rows)
            ordered = (corners[:, :2] <= corners[:, 2:]).all(axis=1)
            inside = (corners[:, :2] >= -TOLERANCE).all(axis=1) & (corners[:, 2:] <= sides + TOLERANCE).all(axis=1)
            good = ordered & inside
            fit.fits += int(good.sum())
            away = np.maximum(-corners[:, :2], corners[:, 2:] - sides) / sides
            fit.slight += int((ordered & ~inside & (away <= SLIGHT).all(axis=1)).sum())
            fit.extent = np.maximum(fit.extent, (corners[:, 2:] / sides).max(axis=0))
            if fit.misfit is None and not good.all():
                number = int(np.argmin(good))
                size = (int(rows[number, 4]), int(rows[number, 5]))
                fit.misfit = self._names[number], self._rows[number][:4], size
        self._largest = max(self._largest, float(np.abs(rows[:, :4]).max()))
        self._sizes = min(self._sizes[0], float(sides.min())), max(self._sizes[1], float(sides.max()))
        self.count += len(rows)
        self._names.clear()
        self._rows.clear()


def _corners(one: BoxFormat, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return corners in pixels, shape (boxes, 4), of rows of four numbers, width and height."""
    top, sides = UNITS[one.unit], np.tile(rows[:, 4:6], 2)
    numbers = rows[:, [1, 0, 3, 2]] if one.order == "yxyx" else rows[:, :4]
    scaled = numbers if top is None else numbers * sides / top
    start, end = scaled[:, :2], scaled[:, 2:]
    if one.order == "xywh":
        return np.hstack([start, start + end])
    if one.order == "cxcywh":
        return np.hstack([start - end / 2, start + end / 2])
    return scaled
