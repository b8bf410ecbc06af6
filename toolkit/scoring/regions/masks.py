"""Masks and outlines: a mask file to its regions, polygons and boxes to masks, and how well two masks agree."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError
from toolkit.scoring.regions.boxes import Box, Size, clip_box

Mask = NDArray[np.bool_]
"""(height, width), True where the region is."""

Polygon = tuple[tuple[float, float], ...]
"""Vertices (x, y): the pixels that the outline runs through, which belong to the region themselves."""

SPECK = 0.01
"""A region smaller than this fraction of the largest one is a speck of annotation, not a lesion."""

ASPECT = 0.01
"""A mask whose sides have another ratio than its image's, by more than this fraction, is not of this image."""

TOLERANCE = 0.75
"""Pixels by which a shortened outline may leave the exact one."""


@dataclass(frozen=True, slots=True)
class Region:
    """One connected part of a mask: its box, its pixels, and its outline within ``TOLERANCE``."""

    box: Box
    area: int
    polygon: Polygon


def read_mask(path: Path) -> Mask:
    """Return a mask file of two values (0 and 255, 0 and 1, or any other two). Values between count by the nearer end.

    Raises:
        DataError: the file is missing or no image.
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
        values = values[..., :3].max(axis=2)  # a fourth channel is opacity
    mask: Mask = values > values.max() / 2
    return mask


def fit_mask(mask: Mask, size: Size) -> Mask | None:
    """Return the mask at the size of its image; None if their proportions differ by more than ``ASPECT``."""
    height, width = mask.shape
    if (width, height) == size:
        return mask
    if abs(width * size[1] / (height * size[0]) - 1) > ASPECT:
        return None
    # The exact kind takes the pixel whose centre is nearest. The plain one is shifted by half a pixel.
    scaled: Mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
    return scaled


def find_regions(mask: Mask) -> tuple[list[Region], int]:
    """Return the mask's connected regions (8-connected), the largest first, and how many specks were left out.

    Holes do not show in an outline.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    order = sorted(range(1, count), key=lambda label: (-areas[label - 1], label))
    kept = [label for label in order if areas[label - 1] >= SPECK * areas.max()]
    return [_region(labels, stats[label], label) for label in kept], len(order) - len(kept)


def _region(labels: NDArray[np.int32], stats: NDArray[np.int32], label: int) -> Region:
    x, y, width, height, area = (int(value) for value in stats)
    part = (labels[y : y + height, x : x + width] == label).astype(np.uint8)
    contours, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
    (contour,) = contours
    points = cv2.approxPolyDP(contour, TOLERANCE, closed=True).reshape(-1, 2)
    return Region((x, y, x + width, y + height), area, tuple((int(px), int(py)) for px, py in points))


def shorten(polygon: Polygon, most: int) -> Polygon:
    """Return the polygon with at most ``most`` vertices (at least 3): Douglas and Peucker's rule, as coarse as that needs."""
    points = np.asarray(polygon, np.float32).reshape(-1, 1, 2)
    tolerance = TOLERANCE
    while len(points) > most:
        points = cv2.approxPolyDP(np.asarray(polygon, np.float32).reshape(-1, 1, 2), tolerance, closed=True)
        tolerance *= 1.25
    return tuple((float(x), float(y)) for x, y in points.reshape(-1, 2))


def draw_polygons(polygons: Iterable[Sequence[tuple[float, float]]], size: Size) -> Mask:
    """Return the mask of polygons in an image of this size, outlines included. What is outside the image is cut off."""
    width, height = size
    canvas = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        if not len(polygon):
            continue
        # Far outside is as good as outside, and OpenCV's integers end somewhere.
        limit = 4 * max(size)
        points = np.asarray(polygon, np.float64).reshape(-1, 2).clip(-limit, limit)
        cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], 1)
    return canvas.astype(bool)


def draw_boxes(boxes: Iterable[Box], size: Size) -> Mask:
    """Return the mask of boxes in an image of this size. A pixel belongs to a box that holds its centre."""
    mask = np.zeros((size[1], size[0]), bool)
    for box in boxes:
        x1, y1, x2, y2 = (int(np.floor(edge + 0.5)) for edge in clip_box(box, size))
        mask[y1:y2, x1:x2] = True
    return mask


def mask_iou(a: Mask, b: Mask) -> float:
    """Return intersection over union (Jaccard index) of two masks of one shape, in [0, 1]; 0 if both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def dice(iou: float) -> float:
    """Return the Dice coefficient that belongs to an IoU: 2 J / (1 + J).

    >>> round(dice(1 / 3), 4)
    0.5
    """
    return 2 * iou / (1 + iou)
