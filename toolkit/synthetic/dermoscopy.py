"""Draw one dermoscopic image: skin, lesions at random positions without overlap, hairs, and lighting.

A class is visible in the outline and the colours of a lesion (``STYLES``), and in nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from toolkit.synthetic import Bytes, Rng

Size = tuple[int, int]
"""Width and height in pixels."""

Colour = tuple[float, float, float]
"""Red, green, blue, 0 to 255."""

Floats = NDArray[np.float32]

CORNERS = 240
"""Number of vertices of an outline."""

PALE: Colour = (236, 205, 190)

TANNED: Colour = (198, 148, 118)

GRID = 3

CUT = 0.08
"""Maximum fraction of a lesion's width or height beyond the image's edge. Large lesions in outer cells can exceed it.
"""

APART = 0.03
"""Minimum distance between two lesions' boxes, as a fraction of the image's longer side."""


@dataclass(frozen=True, slots=True)
class Spot:
    """One lesion, independent of the photograph: class, area as a fraction of the image, and seed of its appearance."""

    dx: str
    fraction: float
    seed: tuple[int, ...]


class LesionImage(NamedTuple):
    """An RGB photograph of shape (height, width, 3) and its mask of shape (height, width) with values 0 and 255."""

    pixels: Bytes
    mask: Bytes


def draw_skin(spots: Sequence[Spot], tone: float, size: Size, rng: Rng) -> LesionImage:
    """Return a photograph of these lesions in random cells of a 3 x 3 grid, rotated at random, without overlap.

    Args:
        spots: At most two lesions. Two should cover at most a tenth of the image each.
        tone: Skin tone of the patient, from 0 (pale) to 1 (tanned).
        size: Width and height of the image.
        rng: Decides positions, rotations, hairs and light. Each lesion's own seed decides its appearance.
    """
    pixels = _draw_background(tone, size, rng)
    mask = np.zeros(pixels.shape[:2], np.uint8)
    turned = [_Turned.of(spot, size, rng) for spot in spots]
    for one, middle in zip(turned, _choose_centres(turned, size, rng), strict=True):
        covered = _cover(one, middle, size)
        _blend(pixels, one, middle, covered)
        mask |= covered
    _draw_hairs(pixels, rng)
    return LesionImage(_photograph(pixels, rng), mask)


def _draw_background(tone: float, size: Size, rng: Rng) -> Floats:
    colour = (1 - tone) * np.array(PALE, np.float32) + tone * np.array(TANNED, np.float32)
    colour = colour + rng.normal(0, 4, 3).astype(np.float32)
    pixels = np.empty((size[1], size[0], 3), np.float32)
    pixels[:] = colour
    mottles = 14 * (noise(rng, 5, size) - 0.5) + 12 * (noise(rng, 40, size) - 0.5)
    pixels += mottles[..., None] * np.array([0.6, 1.0, 1.0], np.float32)
    return pixels


@dataclass(frozen=True, slots=True)
class _Turned:
    """A lesion in this photograph: its rotated outline around its own origin in pixels, and its unrotated colours."""

    spot: Spot
    radius: float
    """Radius in pixels of a circle with the lesion's area."""
    angle: float
    outline: Floats
    colours: Floats

    @classmethod
    def of(cls, spot: Spot, size: Size, rng: Rng) -> "_Turned":
        own = np.random.default_rng(spot.seed)
        radius = float(np.sqrt(spot.fraction * size[0] * size[1] / np.pi))
        outline = radius * make_outline(STYLES[spot.dx], own)
        colours = paint(STYLES[spot.dx], outline, radius, own)
        angle = rng.uniform(0, 2 * np.pi)
        return cls(spot, radius, angle, np.asarray(outline @ _turn(angle).T, np.float32), colours)

    @property
    def half(self) -> Floats:
        """Half the width and height of its box."""
        return np.asarray((self.outline.max(0) - self.outline.min(0)) / 2)

    def origin(self, middle: Floats) -> Floats:
        """Return the origin for a box with its centre at ``middle``."""
        return np.asarray(middle - (self.outline.max(0) + self.outline.min(0)) / 2)


def _turn(angle: float) -> Floats:
    return np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))), np.float32)


def _choose_centres(turned: Sequence[_Turned], size: Size, rng: Rng) -> list[Floats]:
    """Return the centres of the lesions' boxes."""
    for _ in range(60):
        cells = rng.permutation(GRID * GRID)[: len(turned)]
        middles = [_place_in(int(cell), one.half, size, rng) for cell, one in zip(cells, turned, strict=True)]
        if len(turned) < 2 or _are_apart(turned, middles, APART * max(size)):
            return middles
    # For every rotation, two boxes of this size fit into opposite corners.
    corner, far = turned[0].half, np.array(size, np.float32) - turned[-1].half
    return [corner, far]


def _place_in(cell: int, half: Floats, size: Size, rng: Rng) -> Floats:
    spans = [_span(step, float(h), side) for step, h, side in zip((cell % GRID, cell // GRID), half, size, strict=True)]
    return np.array([rng.uniform(low, high) for low, high in spans], np.float32)


def _span(step: int, half: float, side: int) -> tuple[float, float]:
    """Return the range of box centres for which the centre of the visible part is in this third of the side."""
    low, high = (_before_cut((step + part) / GRID * side, half, side) for part in (0.04, 0.96))
    least = half * (1 - 2 * CUT)
    inside = max(low, least), min(high, side - least)
    if inside[0] <= inside[1]:
        return inside
    return (high, high) if step == 0 else (low, low)


def _before_cut(seen: float, half: float, side: int) -> float:
    """Return the centre of a box whose visible part has its centre at ``seen``.

    An edge that cuts the box moves the visible centre by half the cut length.
    """
    if seen < half:
        return 2 * seen - half
    return 2 * seen - side + half if seen > side - half else seen


def _are_apart(turned: Sequence[_Turned], middles: Sequence[Floats], distance: float) -> bool:
    gaps = np.abs(middles[0] - middles[1]) - turned[0].half - turned[1].half
    return bool(gaps.max() > distance)


def _cover(one: _Turned, middle: Floats, size: Size) -> Bytes:
    """Return the lesion's mask. If the edge separates a part from the rest, only the largest part is kept."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    corners = np.rint(one.outline + one.origin(middle)).astype(np.int32)
    cv2.fillPoly(mask, [corners], 255)
    count, regions, figures, _ = cv2.connectedComponentsWithStats(mask)
    if count > 2:
        mask[regions != 1 + np.argmax(figures[1:, cv2.CC_STAT_AREA])] = 0
    return mask


def _blend(pixels: Floats, one: _Turned, middle: Floats, covered: Bytes) -> None:
    """Draw a lesion onto the skin, with the soft or sharp border of its class."""
    sigma = max(STYLES[one.spot.dx].softness * one.radius, 0.6)
    reach = round(3 * sigma) + 2
    x, y, width, height = cv2.boundingRect(covered)
    left, top = max(x - reach, 0), max(y - reach, 0)
    part = np.s_[top : y + height + reach, left : x + width + reach]
    weight = cv2.GaussianBlur(covered[part].astype(np.float32) / 255, (0, 0), sigma)
    rows, columns = weight.shape
    shift = one.origin(middle) - (left, top) - _turn(one.angle) @ np.full(2, len(one.colours) / 2, np.float32)
    matrix = np.column_stack([_turn(one.angle), shift])
    colours = cv2.warpAffine(one.colours, matrix, (columns, rows), borderMode=cv2.BORDER_REPLICATE)
    pixels[part] += (colours - pixels[part]) * weight[..., None]


def _draw_hairs(pixels: Floats, rng: Rng) -> None:
    rows, columns = pixels.shape[:2]
    layer = np.zeros((rows, columns), np.uint8)
    for _ in range(rng.poisson(2)):
        start, bend, end = rng.uniform(-0.1, 1.1, (3, 2)) * (columns, rows)
        t = np.linspace(0, 1, 24)[:, None]
        bend = (start + end) / 2 + 0.25 * (bend - (start + end) / 2)
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        line(layer, curve, max(1, round(max(rows, columns) / 300)))
    mix(pixels, (58, 40, 32), layer.astype(np.float32) * np.float32(0.8 / 255))


def _photograph(pixels: Floats, rng: Rng) -> Bytes:
    """Return 8-bit pixels after lighting, colour cast, vignetting and sensor noise."""
    rows, columns = pixels.shape[:2]
    y, x = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    shade = 1 - rng.uniform(0.06, 0.16) * ((x**2 + y**2) / 2) ** 2
    light = rng.uniform(0.93, 1.05) * rng.normal(1, 0.01, 3)
    pixels *= shade.astype(np.float32)[..., None]
    pixels *= light.astype(np.float32)
    pixels += 3 * rng.standard_normal(pixels.shape, np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


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
