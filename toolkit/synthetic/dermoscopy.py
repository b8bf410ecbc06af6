"""Draw one dermoscopic image: skin, lesions at random positions without overlap, hairs, and lighting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from toolkit.synthetic.lesion_shapes import (
    STYLES,
    Bytes,
    Colour,
    Floats,
    Rng,
    Size,
    Spot,
    line,
    make_outline,
    mix,
    noise,
    paint,
)

PALE: Colour = (236, 205, 190)
TANNED: Colour = (198, 148, 118)

GRID = 3
CUT = 0.08
"""Maximum fraction of a lesion's width or height beyond the image's edge. Large lesions in outer cells can exceed it.
"""
APART = 0.03
"""Minimum distance between two lesions' boxes, as a fraction of the image's longer side."""


class LesionImage(NamedTuple):
    """An RGB photograph of shape (height, width, 3) and its mask of shape (height, width) with values 0 and 255."""

    pixels: Bytes
    mask: Bytes


def draw_skin(spots: Sequence[Spot], tone: float, size: Size, rng: Rng) -> LesionImage:
    """Return a photograph of these lesions in random cells of a 3 x 3 grid, rotated at random, without overlap.

    Args:
        spots: One or two lesions. Two should cover at most a tenth of the image each.
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
        if len(turned) == 1 or _are_apart(turned, middles, APART * max(size)):
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
