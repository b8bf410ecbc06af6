"""Bounding boxes (x1, y1, x2, y2) in pixels, x2 and y2 exclusive, and their overlap."""

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
    shared = _intersection(a, b)
    union = box_area(a) + box_area(b) - shared
    return shared / union if union > 0 else 0.0


def box_giou(a: Box, b: Box) -> float:
    """Return the generalised IoU in [-1, 1] (Rezatofighi et al. 2019, arXiv 1902.09630).

    It is negative for distant boxes and falls with their distance.

    >>> round(box_giou((0, 0, 10, 10), (20, 0, 30, 10)), 4)
    -0.3333
    """
    shared = _intersection(a, b)
    union = box_area(a) + box_area(b) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    if hull <= 0 or union <= 0:
        return -1.0
    return shared / union - (hull - union) / hull


def _intersection(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)
