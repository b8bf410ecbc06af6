"""Masks and outlines: mask files to regions, polygons and boxes to masks, and mask overlap."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

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

SPECK = 0.01
"""A region below this fraction of the largest region's area counts as an annotation artefact."""

ASPECT = 0.01
"""Maximum relative difference between the aspect ratios of a mask and its image."""

TOLERANCE = 0.75
"""Maximum distance in pixels between a simplified outline and the exact one."""


@dataclass(frozen=True, slots=True)
class Region:
    """One connected region of a mask: its box, its area in pixels, and its outline within ``TOLERANCE``."""

    box: Box
    area: int
    polygon: Polygon


def read_mask(path: Path) -> Mask:
    """Load a mask file with two values, such as 0 and 255. Values in between go to the nearer one.

    Raises:
        DataError: The file is unreadable or not an image.
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        rule, value = "a mask must be readable", error.strerror or str(error)
        remedy = "Correct the path, or change its permissions."
        raise DataError("data.mask_not_readable", rule, place=path, value=value, remedy=remedy) from error
    values = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if values is None:
        rule, remedy = "a mask must be an image", "Copy the file again."
        raise DataError("data.mask_not_image", rule, place=path, remedy=remedy)
    if values.ndim == 3:
        values = values[..., :3].max(axis=2)  # the fourth channel is opacity
    mask: Mask = values > values.max() / 2
    return mask


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
    points = cv2.approxPolyDP(contour, TOLERANCE, closed=True).reshape(-1, 2)
    return Region((x, y, x + width, y + height), area, tuple((int(px), int(py)) for px, py in points))


def shorten(polygon: Polygon, maximum: int) -> Polygon:
    """Return the polygon with at most ``maximum`` vertices (at least 3), simplified by Douglas-Peucker."""
    points = np.asarray(polygon, np.float32).reshape(-1, 1, 2)
    tolerance = TOLERANCE
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
