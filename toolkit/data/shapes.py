"""Shapes that a task draws over an image for a reader: the boxes, outlines and targets of a reference or an answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ShapeKind = Literal["box", "outline", "point", "arrow"]


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape over the first image of a sample.

    Attributes:
        kind: ``box`` (x1, y1, x2, y2), ``outline`` (x, y of each vertex in turn), ``point`` (x, y) or ``arrow`` (from
            x, y to x, y).
        numbers: the coordinates, in pixels of the shown image (the upright original, or its crop).
        label: a short text beside the shape, such as the class of a box.
    """

    kind: ShapeKind
    numbers: tuple[float, ...]
    label: str = ""


def box_shape(numbers: Sequence[float], label: str = "") -> Shape:
    """Return a box of four numbers.

    >>> box_shape([1, 2, 3, 4], "cyst")
    Shape(kind='box', numbers=(1.0, 2.0, 3.0, 4.0), label='cyst')
    """
    return Shape("box", tuple(map(float, numbers)), label)


def outline_shape(points: Sequence[Sequence[float]], label: str = "") -> Shape:
    """Return the outline of a polygon.

    >>> outline_shape([(0, 0), (4, 0), (4, 4)]).numbers
    (0.0, 0.0, 4.0, 0.0, 4.0, 4.0)
    """
    return Shape("outline", tuple(float(number) for point in points for number in point), label)
