"""Single lesions: outline and colours that distinguish each class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Size = tuple[int, int]
"""Width and height in pixels."""
Colour = tuple[float, float, float]
"""Red, green, blue, 0 to 255."""
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

CORNERS = 240
"""Number of vertices of an outline."""


@dataclass(frozen=True, slots=True)
class Spot:
    """One lesion, independent of the photograph: class, area as a fraction of the image, and seed of its appearance."""

    dx: str
    fraction: float
    seed: tuple[int, ...]


def make_outline(style: "Style", rng: Rng) -> Floats:
    """Return a closed outline around (0, 0) with the area of the unit circle and a wavy border, shape (corners, 2)."""
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    radii = np.ones(CORNERS)
    for waves in range(*style.waves):
        height = style.irregularity * rng.uniform(0.6, 1.4) / np.sqrt(len(range(*style.waves)))
        radii += height * np.cos(waves * angles + rng.uniform(0, 2 * np.pi))
    radii = np.maximum(radii, 0.3)
    stretch = np.sqrt(rng.uniform(1, style.stretch))
    x, y = stretch * radii * np.cos(angles), radii * np.sin(angles) / stretch
    area = 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    return np.asarray(np.stack([x, y], axis=1) * np.sqrt(np.pi / area), np.float32)


def paint(style: "Style", outline: Floats, radius: float, rng: Rng) -> Floats:
    """Return the colours of a lesion in a square around its origin, shape (side, side, 3).

    The colours continue beyond the outline, so that a soft border fades from the lesion's own colours.
    """
    reach = float(np.abs(outline).max())
    side = 2 * int(np.ceil(1.1 * reach))
    inside = np.zeros((side, side), np.uint8)
    cv2.fillPoly(inside, [np.rint(outline + side / 2).astype(np.int32)], 255)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    colours = np.empty((side, side, 3), np.float32)
    colours[:] = np.array(style.colour) * rng.uniform(0.93, 1.07) + rng.normal(0, 3, 3)
    style.paint(Canvas(colours, depth / max(float(depth.max()), 1.0), radius, rng))
    return colours


@dataclass(slots=True)
class Canvas:
    """A lesion that is being painted, before its rotation.

    Attributes:
        colours: Shape (side, side, 3).
        depth: Distance from the outline, from 0 on it to 1 in the centre.
        radius: In pixels.
        rng: Decides the variation within the class.
    """

    colours: Floats
    depth: Floats
    radius: float
    rng: Rng

    def noise(self, cells: int) -> Floats:
        """Return a smooth random field of about 0 to 1 with this many bumps per side."""
        return noise(self.rng, cells, (len(self.depth),) * 2)

    def patches(self, cells: int, fraction: float) -> Floats:
        """Return weights 0 to 1 of irregular patches that cover this fraction of the lesion."""
        field = self.noise(cells)
        level = np.quantile(field[self.depth > 0], 1 - fraction)
        return np.asarray(np.clip(9 * (field - level) + 0.5, 0, 1), np.float32)

    def dots(self, count: int, radii: tuple[float, float]) -> Floats:
        """Return weights 0 to 1 of round dots. Radii are fractions of the lesion's radius."""
        layer = np.zeros(self.depth.shape, np.uint8)
        for x, y, radius in self.rng.uniform((-1, -1, radii[0]), (1, 1, radii[1]), (count, 3)):
            cv2.circle(layer, self.pixel(x, y), max(1, round(radius * self.radius)), 255, -1, cv2.LINE_AA)
        return layer.astype(np.float32) / np.float32(255)

    def pixel(self, x: float, y: float) -> tuple[int, int]:
        """Return the pixel of a point that is given in radii from the lesion's origin."""
        middle = len(self.depth) / 2
        return round(middle + x * self.radius), round(middle + y * self.radius)


def _paint_nevus(canvas: Canvas) -> None:
    mix(canvas.colours, (88, 52, 34), 0.45 * canvas.depth)
    canvas.colours += (10 * (canvas.noise(22) - 0.5))[..., None]


def _paint_melanoma(canvas: Canvas) -> None:
    mix(canvas.colours, (24, 17, 18), 0.95 * canvas.patches(5, 0.38))
    mix(canvas.colours, (104, 118, 150), 0.9 * canvas.patches(4, 0.24))
    canvas.colours += (22 * (canvas.noise(16) - 0.5))[..., None]


def _paint_keratosis(canvas: Canvas) -> None:
    canvas.colours += (26 * (canvas.noise(6) - 0.5))[..., None]
    mix(canvas.colours, (78, 60, 42), 0.85 * canvas.dots(60, (0.025, 0.055)))
    mix(canvas.colours, (232, 220, 176), 0.85 * canvas.dots(30, (0.03, 0.06)))


def _paint_carcinoma(canvas: Canvas) -> None:
    mix(canvas.colours, (250, 214, 220), 0.8 * canvas.patches(4, 0.3))
    mix(canvas.colours, (252, 222, 226), 0.6 * np.clip(1 - canvas.depth / 0.22, 0, 1))
    layer = np.zeros(canvas.depth.shape, np.uint8)
    for heading in 2 * np.pi * (np.arange(6) + canvas.rng.uniform(0, 1, 6)) / 6:
        _draw_vessel(canvas, layer, heading)
    mix(canvas.colours, (186, 22, 40), layer.astype(np.float32) * np.float32(0.9 / 255))


def _draw_vessel(canvas: Canvas, layer: Bytes, heading: float) -> None:
    """Draw a vessel that runs from the border towards the centre and branches once."""
    point = 0.95 * np.array([np.cos(heading), np.sin(heading)])
    course = heading + np.pi + canvas.rng.normal(0, 0.5)
    stem = _wander(canvas.rng, point, course, 9)
    branch = _wander(canvas.rng, stem[4], course + canvas.rng.choice((-0.9, 0.9)), 5)
    width = max(1, round(0.045 * canvas.radius))
    for curve, thickness in ((stem, width), (branch, max(1, width - 1))):
        line(layer, [canvas.pixel(x, y) for x, y in curve], thickness)


def _wander(rng: Rng, point: NDArray[np.float64], course: float, steps: int) -> NDArray[np.float64]:
    courses = course + np.cumsum(rng.normal(0, 0.35, steps))
    return np.cumsum([point, *(0.12 * np.stack([np.cos(courses), np.sin(courses)], axis=1))], axis=0)


def _paint_actinic(canvas: Canvas) -> None:
    canvas.colours += (60 * (canvas.noise(26) - 0.5))[..., None]
    mix(canvas.colours, (242, 226, 190), 0.9 * canvas.patches(13, 0.24))
    mix(canvas.colours, (138, 40, 34), 0.7 * canvas.patches(15, 0.12))


def _paint_lagoons(canvas: Canvas) -> None:
    for x, y, radius in canvas.rng.uniform((-0.95, -0.95, 0.14), (0.95, 0.95, 0.27), (30, 3)):
        shade = canvas.rng.uniform(0, 1)
        colour = (88 + 62 * shade, 8 + 14 * shade, 52 - 10 * shade)
        point, pixels = canvas.pixel(x, y), round(radius * canvas.radius)
        cv2.circle(canvas.colours, point, pixels + max(1, round(0.03 * canvas.radius)), (198, 92, 124), -1)
        cv2.circle(canvas.colours, point, pixels, colour, -1)
    cv2.GaussianBlur(canvas.colours, (0, 0), max(0.5, 0.02 * canvas.radius), dst=canvas.colours)


def _paint_dermatofibroma(canvas: Canvas) -> None:
    middle = np.clip((canvas.depth + 0.3 * (canvas.noise(7) - 0.5) - 0.5) / 0.16, 0, 1)
    mix(canvas.colours, (246, 238, 232), 0.95 * middle)
    canvas.colours += (8 * (canvas.noise(18) - 0.5))[..., None]


@dataclass(frozen=True, slots=True)
class Style:
    """Appearance of a class.

    Attributes:
        colour: Main colour.
        irregularity: Height of the waves of the border, in radii.
        waves: First and last (exclusive) number of waves around the border. Few make lobes, many make it jagged.
        stretch: Maximum ratio of length to width.
        softness: Softness of the border, in radii.
        paint: Draws the texture onto the main colour.
    """

    colour: Colour
    irregularity: float
    waves: tuple[int, int]
    stretch: float
    softness: float
    paint: Callable[[Canvas], None]


STYLES: Mapping[str, Style] = {
    "akiec": Style((196, 84, 72), 0.13, (5, 18), 1.3, 0.04, _paint_actinic),
    "bcc": Style((222, 128, 146), 0.10, (2, 6), 1.3, 0.04, _paint_carcinoma),
    "bkl": Style((162, 132, 104), 0.09, (4, 9), 1.25, 0.015, _paint_keratosis),
    "df": Style((154, 102, 72), 0.04, (2, 4), 1.15, 0.09, _paint_dermatofibroma),
    "mel": Style((88, 54, 40), 0.24, (1, 9), 1.3, 0.02, _paint_melanoma),
    "nv": Style((128, 80, 52), 0.03, (2, 4), 1.2, 0.06, _paint_nevus),
    "vasc": Style((160, 40, 78), 0.09, (4, 10), 1.2, 0.02, _paint_lagoons),
}
"""HAM10000 class code -> style. Every class has a unique colour, border and texture."""


def noise(rng: Rng, cells: int, size: Size) -> Floats:
    """Return a smooth random field of about 0 to 1 with ``cells`` bumps per side."""
    return np.asarray(cv2.resize(rng.random((cells, cells), np.float32), size, interpolation=cv2.INTER_CUBIC))


def mix(pixels: Floats, colour: Colour, weight: NDArray[np.floating]) -> None:
    """Blend a colour into the pixels, with a weight of 0 to 1 per pixel."""
    pixels += (np.array(colour, np.float32) - pixels) * weight.astype(np.float32)[..., None]


def line(layer: Bytes, curve: object, thickness: int) -> None:
    """Draw an antialiased line through points of x and y."""
    cv2.polylines(layer, [np.rint(np.asarray(curve)).astype(np.int32)], False, 255, thickness, cv2.LINE_AA)
