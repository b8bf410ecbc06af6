"""Masks and outlines: mask files to regions, polygons and boxes to masks, and mask overlap."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError
from toolkit.scoring.regions.boxes import Box, Size, clip_box

Mask = NDArray[np.bool_]
"""Shape (height, width), True inside the region."""

Polygon = tuple[tuple[float, float], ...]
"""Vertices (x, y). They are pixels of the region itself, not of its surroundings.

A box has exclusive edges and a polygon inclusive vertices: the square of the pixels 0 to 9 has the box (0, 0, 10, 10)
and the polygon (0, 0), (9, 0), (9, 9), (0, 9). OpenCV finds and fills polygons in this convention.
"""

MaskReading = Literal["two", "any", "each"]
"""How a mask with more values than 0 and another one is read: as an error, as one foreground, or as one per value."""

MaskValue = int | tuple[int, ...]
"""A grey value, or (blue, green, red)."""

MANY, NOISY, CLOSE = 16, 3, 1 / 8
"""A mask with more than ``MANY`` values, ``NOISY`` times as many as cover areas, was smoothed or compressed. In such a
mask, values within the fraction ``CLOSE`` of the largest one are one value."""

SPECK = 0.01
"""A region below this fraction of the largest region's area counts as an annotation artefact."""

ASPECT = 0.01
"""Maximum relative difference between the aspect ratios of a mask and its image."""

OUTLINE_TOLERANCE = 0.75
"""Maximum distance in pixels between a simplified outline and the exact one."""


@dataclass(frozen=True, slots=True)
class Region:
    """One connected region of a mask: its box, its area in pixels, and its outline within ``OUTLINE_TOLERANCE``."""

    box: Box
    area: int
    polygon: Polygon


@dataclass(frozen=True, slots=True, eq=False)
class MaskFile:
    """A mask file as distinct values.

    Attributes:
        path: the file.
        index: for each pixel the index of its value in ``values``. Shape (height, width).
        values: the distinct values, dark ones first: an int, or (blue, green, red) of a coloured mask.
        rounded: whether pixels between these values were set to the nearest one, as at smoothed or compressed edges.
    """

    path: Path
    index: NDArray[np.integer[Any]]
    values: tuple[MaskValue, ...]
    rounded: bool = False

    @property
    def has_background(self) -> bool:
        """Return whether the first value is 0, or so dark that it is 0 after compression."""
        return bool(np.max(self.values[0]) <= CLOSE * np.max(self.values))

    @property
    def is_ambiguous(self) -> bool:
        """Return whether the mask is more than one foreground value on background of value 0."""
        return len(self.values) > 2 or (len(self.values) == 2 and not self.has_background)

    def masks(self, reading: MaskReading = "two") -> list[Mask]:
        """Return the foreground: one mask, or with ``each`` one for every value but 0.

        Raises:
            DataError: the mask is ambiguous, and ``reading`` is ``two``.
        """
        if reading == "two" and self.is_ambiguous:
            rule = "a mask must have the value 0 and at most one other value"
            remedy = (
                "Two readings are possible. Add --mask-values any to read all values but 0 as one foreground, or "
                "--mask-values each to read each value but 0 as regions of its own."
            )
            raise DataError("data.mask_values_ambiguous", rule, place=self.path, value=self.counts, remedy=remedy)
        first = 1 if self.has_background else 0
        if reading == "each" and len(self.values) > first:
            return [self.index == number for number in range(first, len(self.values))]
        return [self.index >= first]

    @property
    def counts(self) -> str:
        """Return the values with their numbers of pixels, in words."""
        counted = np.bincount(self.index.ravel(), minlength=len(self.values)).tolist()
        return ", ".join(f"{value}: {number:,} pixels" for value, number in zip(self.values, counted, strict=True))


def read_mask(path: Path, reading: MaskReading = "two") -> Mask:
    """Load a mask file as one foreground, such as 0 and 255. Values in between go to the nearer one.

    Raises:
        DataError: The file is unreadable or not an image, or its values can be read in two ways.
    """
    mask: Mask = np.any(read_mask_file(path).masks(reading), axis=0)
    return mask


def read_mask_file(path: Path) -> MaskFile:
    """Load a mask file and find its distinct values.

    A value counts if it covers areas, not only edges: pixels whose neighbours have the same value, and at least
    ``SPECK`` of those of the largest area. Values at smoothed or compressed edges go to the nearest such value.

    Raises:
        DataError: The file is unreadable or not an image, or only its opacity varies.
    """
    pixels = _decode(path)
    codes, colours = _distinct(pixels)
    if len(colours) <= 2:
        return MaskFile(path, codes, _shown(colours))
    chosen = _levels(codes, colours)
    distances = np.abs(colours[:, None].astype(np.int64) - colours[None, chosen].astype(np.int64)).max(axis=2)
    nearest = distances.argmin(axis=1)
    return MaskFile(path, nearest[codes], _shown(colours[chosen]), rounded=len(chosen) < len(colours))


def _decode(path: Path) -> NDArray[Any]:
    """Return the pixels: (height, width), or (height, width, 3) if the channels differ."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        rule, value = "a mask must be readable", error.strerror or str(error)
        remedy = "Correct the path, or change its permissions."
        raise DataError("data.mask_not_readable", rule, place=path, value=value, remedy=remedy) from error
    pixels: NDArray[Any] | None = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if pixels is None:
        rule, remedy = "a mask must be an image", "Copy the file again."
        raise DataError("data.mask_not_image", rule, place=path, remedy=remedy)
    pixels = _whole(pixels, path)
    if pixels.ndim == 2:
        return pixels
    colour: NDArray[Any] = pixels[..., :3]
    if pixels.shape[2] == 4 and np.ptp(colour, axis=(0, 1)).max() == 0 and np.ptp(pixels[..., 3]):
        rule = "a mask must be in the colours of its file, not in the opacity"
        low, high = pixels[..., 3].min(), pixels[..., 3].max()
        value = f"colour {_shown(colour[0, :1])[0]} everywhere, opacity {low} to {high}"
        remedy = "Save the opacity as a grey image if it is the mask, or repair the file if the mask is empty."
        raise DataError("data.mask_in_opacity", rule, place=path, value=value, remedy=remedy)
    grey = bool((colour == colour[..., :1]).all())
    return colour[..., 0] if grey else colour


def _whole(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return 8 or 16 bit pixels as they are, and those of a TIFF with floats or 32 bits as whole numbers.

    Fractions such as 0 to 1 keep the order and the distances of their values.
    """
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if not np.isfinite(pixels).all() or pixels.min() < 0:
        rule, remedy = "the values of a mask must be numbers from 0 on", "Save the mask as a PNG with 8 bits."
        value = f"{pixels.min()} to {pixels.max()}"
        raise DataError("data.mask_value_invalid", rule, place=path, value=value, remedy=remedy)
    top = float(pixels.max())
    if top <= np.iinfo(np.uint16).max and (pixels == np.floor(pixels)).all():
        return pixels.astype(np.uint16)
    return np.rint(pixels.astype(np.float64) / top * np.iinfo(np.uint8).max).astype(np.uint8)


def _distinct(pixels: NDArray[Any]) -> tuple[NDArray[np.integer[Any]], NDArray[Any]]:
    """Return the index of each pixel's colour, and the distinct colours, dark ones first. Shape (colours, channels)."""
    if pixels.ndim == 2:
        used = np.bincount(pixels.ravel()) > 0
        return (np.cumsum(used) - 1).astype(np.uint16)[pixels], np.flatnonzero(used)[:, None]
    channels = pixels.astype(np.int64)
    sums = channels.sum(axis=2)
    keys = (sums << 48) | (channels[..., 0] << 32) | (channels[..., 1] << 16) | channels[..., 2]
    _, first, index = np.unique(keys.ravel(), return_index=True, return_inverse=True)
    return index.reshape(sums.shape), pixels.reshape(-1, 3)[first]


def _levels(codes: NDArray[np.integer[Any]], colours: NDArray[Any]) -> NDArray[np.intp]:
    """Return the indices of the colours that cover areas, in order."""
    areas = np.bincount(codes[1:-1, 1:-1][_inside_areas(codes)], minlength=len(colours))
    background = 0 if not colours[0].any() else -1
    others = np.where(np.arange(len(colours)) == background, 0, areas)
    large = np.flatnonzero((others >= SPECK * others.max()) & (others > 0))
    if not large.size:
        large = np.array([len(colours) - 1])
    if len(colours) > max(NOISY * (len(large) + 1), MANY):
        large = _merge_close(large, areas, colours, background)
    return np.union1d(large, [background]) if background == 0 else large


def _merge_close(
    levels: NDArray[np.intp], areas: NDArray[np.intp], colours: NDArray[Any], background: int
) -> NDArray[np.intp]:
    """Return the levels without those that compression made out of a larger one, which is close to them."""
    limit = int(colours.max()) * CLOSE
    kept = [background] if background == 0 else []
    for level in sorted(levels.tolist(), key=lambda level: -areas[level]):
        gaps = [np.abs(colours[level].astype(np.int64) - colours[other].astype(np.int64)).max() for other in kept]
        if all(gap > limit for gap in gaps):
            kept.append(level)
    return np.array(sorted(kept))


def _inside_areas(codes: NDArray[np.integer[Any]]) -> Mask:
    """Return for each inner pixel whether its eight neighbours have its value."""
    height, width = codes.shape
    inner = codes[1:-1, 1:-1]
    inside = np.ones(inner.shape, bool)
    for down in (0, 1, 2):
        for right in (0, 1, 2):
            inside &= codes[down : height - 2 + down, right : width - 2 + right] == inner
    return inside


def _shown(colours: NDArray[Any]) -> tuple[MaskValue, ...]:
    return tuple(int(one[0]) if len(one) == 1 else tuple(int(part) for part in one) for one in colours)


def fit_mask(mask: Mask, size: Size) -> Mask | None:
    """Return the mask at the size of its image, or None if the aspect ratios differ by more than ``ASPECT``."""
    height, width = mask.shape
    if (width, height) == size:
        return mask
    if abs(width * size[1] / (height * size[0]) - 1) > ASPECT:
        return None
    # INTER_NEAREST_EXACT takes the pixel with the nearest centre. INTER_NEAREST is shifted by half a pixel.
    scaled: Mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
    return scaled


def find_regions(mask: Mask) -> tuple[list[Region], int]:
    """Return the 8-connected regions of the mask, largest first, and the number of ignored specks.

    Outlines do not include holes.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    order = sorted(range(1, count), key=lambda label: (-areas[label - 1], label))
    large = [label for label in order if areas[label - 1] >= SPECK * areas.max()]
    return [_region(labels, stats[label], label) for label in large], len(order) - len(large)


def _region(labels: NDArray[np.int32], stats: NDArray[np.int32], label: int) -> Region:
    x, y, width, height, area = (int(value) for value in stats)
    part = (labels[y : y + height, x : x + width] == label).astype(np.uint8)
    contours, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
    (contour,) = contours
    points = cv2.approxPolyDP(contour, OUTLINE_TOLERANCE, closed=True).reshape(-1, 2)
    return Region((x, y, x + width, y + height), area, tuple((int(px), int(py)) for px, py in points))


def simplify_polygon(polygon: Polygon, maximum: int) -> Polygon:
    """Return the polygon with at most ``maximum`` vertices (at least 3), simplified by Douglas-Peucker."""
    points = np.asarray(polygon, np.float32).reshape(-1, 1, 2)
    tolerance = OUTLINE_TOLERANCE
    # The number of vertices has no closed form in the tolerance, so the tolerance grows until they are few enough.
    while len(points) > maximum:
        points = cv2.approxPolyDP(np.asarray(polygon, np.float32).reshape(-1, 1, 2), tolerance, closed=True)
        tolerance *= 1.25
    return tuple((float(x), float(y)) for x, y in points.reshape(-1, 2))


def draw_polygons(polygons: Iterable[Sequence[tuple[float, float]]], size: Size) -> Mask:
    """Return the mask of polygons in an image of this size, outlines included. Parts outside the image are cut off."""
    width, height = size
    canvas = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        if not len(polygon):
            continue
        # Clipping far outside the image changes nothing, and keeps coordinates in the range of OpenCV's integers.
        limit = 4 * max(size)
        points = np.asarray(polygon, np.float64).reshape(-1, 2).clip(-limit, limit)
        cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], 1)
    return canvas.astype(bool)


def draw_boxes(boxes: Iterable[Box], size: Size) -> Mask:
    """Return the mask of boxes in an image of this size. A pixel is in a box that contains its centre."""
    mask = np.zeros((size[1], size[0]), bool)
    for box in boxes:
        x1, y1, x2, y2 = (int(np.floor(edge + 0.5)) for edge in clip_box(box, size))
        mask[y1:y2, x1:x2] = True
    return mask


def mask_iou(a: Mask, b: Mask) -> float:
    """Return intersection over union (Jaccard index) of two masks of equal shape, in [0, 1], or 0 if both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def dice(iou: float) -> float:
    """Return the Dice coefficient for an IoU J: 2 J / (1 + J).

    >>> round(dice(1 / 3), 4)
    0.5
    """
    return 2 * iou / (1 + iou)
