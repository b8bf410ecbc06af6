"""Bounding boxes (x1, y1, x2, y2) in pixels, x2 and y2 exclusive: overlap, and matching of two lists."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

U = TypeVar("U")

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2. The right and lower edges are exclusive, so the width is x2 - x1."""

Size = tuple[int, int]
"""Width and height in pixels."""


def order_box(x1: float, y1: float, x2: float, y2: float) -> Box:
    """Return the box with these two opposite corners, in any order.

    >>> order_box(30, 40, 10, 20)
    (10, 20, 30, 40)
    """
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def clip_box(box: Box, size: Size) -> Box:
    """Return the part of the box inside the image. Its area is 0 if the box is outside.

    >>> clip_box((-5, 10, 50, 200), (40, 100))
    (0, 10, 40, 100)
    """
    width, height = size
    x1, x2 = (min(max(x, 0), width) for x in (box[0], box[2]))
    y1, y2 = (min(max(y, 0), height) for y in (box[1], box[3]))
    return x1, y1, x2, y2


def centre(box: Box) -> tuple[float, float]:
    """Return the centre (x, y) of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def box_area(box: Box) -> float:
    """Return the area in pixels, or 0 if the corners are swapped."""
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def box_iou(a: Box, b: Box) -> float:
    """Return intersection over union (Jaccard index) in [0, 1], or 0 if neither box has an area.

    >>> round(box_iou((0, 0, 10, 10), (5, 0, 15, 10)), 4)
    0.3333
    """
    intersection = _intersection(a, b)
    union = box_area(a) + box_area(b) - intersection
    return intersection / union if union > 0 else 0.0


def box_giou(a: Box, b: Box) -> float:
    """Return the generalised IoU in [-1, 1] (Rezatofighi et al. 2019, arXiv 1902.09630).

    It is negative for distant boxes and falls with their distance.

    >>> round(box_giou((0, 0, 10, 10), (20, 0, 30, 10)), 4)
    -0.3333
    """
    intersection = _intersection(a, b)
    union = box_area(a) + box_area(b) - intersection
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    if hull <= 0 or union <= 0:
        return -1.0
    return intersection / union - (hull - union) / hull


def match(
    references: Sequence[T], answers: Sequence[U], score: Callable[[T, U], float]
) -> tuple[list[tuple[int, int]], float]:
    """Return the one-to-one assignment with the largest sum of scores (Kuhn 1955), and its mean score.

    The sum is divided by the length of the longer list, so a missing and an extra lesion cost the same. Otherwise an
    answer could raise its score by naming many regions. Scores are in [0, 1]. Pairs with score 0 are left out.

    >>> match([1, 5], [5, 1, 9], lambda a, b: float(a == b))
    ([(0, 1), (1, 0)], 0.6666666666666666)
    """
    if not references or not answers:
        return [], 0.0
    table = np.array([[score(one, other) for other in answers] for one in references], dtype=float)
    if table.size == 1:  # the usual case in dermoscopy, once per completion and reward
        pairs = [(0, 0)]
    else:
        from scipy.optimize import linear_sum_assignment  # takes 0.25 s to import and is rarely needed

        pairs = [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(table, maximize=True), strict=True)]
    pairs = [pair for pair in pairs if table[pair] > 0]
    return pairs, float(sum(table[pair] for pair in pairs)) / max(table.shape)


def _intersection(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)
