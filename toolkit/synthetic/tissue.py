"""Synthetic tiles of stained colorectal tissue, in nine classes with the codes of NCT-CRC-HE.

A class is visible in colour and texture. The drawings only resemble histology.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from toolkit.synthetic import Bytes, Rng
from toolkit.synthetic.dermoscopy import Colour, Floats, line, mix, noise

PINK: Colour = (226, 150, 190)
PURPLE: Colour = (92, 52, 132)
WHITE: Colour = (240, 236, 240)

Layer = np.ndarray


def draw_tile(code: str, size: int, rng: Rng) -> Bytes:
    """Return an RGB tile of shape (size, size, 3) that shows this tissue."""
    base, paint = TISSUES[code]
    pixels = np.empty((size, size, 3), np.float32)
    pixels[:] = np.array(base, np.float32) + rng.normal(0, 5, 3).astype(np.float32)
    pixels += (10 * (noise(rng, 6, (size, size)) - 0.5))[..., None]
    paint(pixels, rng)
    stain = rng.uniform(0.93, 1.06) * rng.normal(1, 0.015, 3)
    pixels *= stain.astype(np.float32)
    pixels += 3 * rng.standard_normal(pixels.shape, np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _adipose(pixels: Floats, rng: Rng) -> None:
    """Draw large empty cells with thin walls."""
    size = len(pixels)
    layer = np.zeros((size, size), np.uint8)
    for y in np.arange(-0.1, 1.1, 0.27):
        for x in np.arange(-0.1, 1.1, 0.27):
            centre = _pixel(size, np.array((x, y)) + rng.normal(0, 0.03, 2))
            axes = _pixel(size, rng.uniform(0.12, 0.15, 2))
            cv2.ellipse(layer, centre, axes, float(rng.uniform(0, 180)), 0, 360, 255, max(1, size // 90), cv2.LINE_AA)
    _paint(pixels, PINK, layer, 0.9)


def _background(pixels: Floats, rng: Rng) -> None:
    """Draw nothing."""


def _debris(pixels: Floats, rng: Rng) -> None:
    """Draw irregular smears."""
    size = (len(pixels), len(pixels))
    mix(pixels, (150, 92, 112), np.clip(3 * (noise(rng, 9, size) - 0.4), 0, 0.9))
    mix(pixels, (205, 120, 120), np.clip(3 * (noise(rng, 14, size) - 0.5), 0, 0.8))
    _nuclei(pixels, 40, 0.008, rng)


def _lymphocytes(pixels: Floats, rng: Rng) -> None:
    """Draw dense small nuclei."""
    _nuclei(pixels, 420, 0.02, rng)


def _mucus(pixels: Floats, rng: Rng) -> None:
    """Draw pale streaks."""
    _waves(pixels, (150, 170, 214), (14, 0.03, 90), rng)


def _muscle(pixels: Floats, rng: Rng) -> None:
    """Draw parallel fibres with few elongated nuclei."""
    _waves(pixels, (196, 84, 150), (22, 0.012, 40), rng)


def _mucosa(pixels: Floats, rng: Rng) -> None:
    """Draw round glands: a ring of nuclei around a pale centre."""
    _glands(pixels, (0.14, 0.16), 0.36, rng)


def _stroma(pixels: Floats, rng: Rng) -> None:
    """Draw wavy fibres with sparse nuclei."""
    _waves(pixels, (214, 120, 170), (12, 0.06, 60), rng)
    _nuclei(pixels, 60, 0.014, rng)


def _tumour(pixels: Floats, rng: Rng) -> None:
    """Draw large crowded nuclei around irregular openings."""
    _nuclei(pixels, 190, 0.04, rng)
    mix(pixels, WHITE, np.clip(6 * (noise(rng, 5, (len(pixels),) * 2) - 0.72), 0, 1))


TISSUES: Mapping[str, tuple[Colour, Callable[[Floats, Rng], None]]] = {
    "ADI": (WHITE, _adipose),
    "BACK": (WHITE, _background),
    "DEB": ((214, 156, 160), _debris),
    "LYM": ((206, 176, 214), _lymphocytes),
    "MUC": ((206, 214, 236), _mucus),
    "MUS": ((232, 140, 190), _muscle),
    "NORM": (PINK, _mucosa),
    "STR": ((240, 190, 214), _stroma),
    "TUM": ((196, 130, 190), _tumour),
}
"""Code of NCT-CRC-HE -> main colour, and the function that draws the texture."""


def _nuclei(pixels: Floats, count: int, radius: float, rng: Rng) -> None:
    size = len(pixels)
    layer = np.zeros((size, size), np.uint8)
    for x, y in rng.uniform(0, 1, (count, 2)):
        axes = _pixel(size, radius * rng.uniform(0.8, 1.2, 2))
        cv2.ellipse(layer, _pixel(size, (x, y)), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA)
    _paint(pixels, PURPLE, layer, 0.85)


def _waves(pixels: Floats, colour: Colour, shape: tuple[int, float, int], rng: Rng) -> None:
    """Draw parallel lines in a random direction. ``shape``: their number, the height of their waves, their width."""
    count, height, part = shape
    size = len(pixels)
    layer = np.zeros((size, size), np.uint8)
    angle, t = rng.uniform(0, np.pi), np.linspace(-0.3, 1.3, 30)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    for offset in np.linspace(-0.8, 0.8, count):
        bent = offset + height * np.sin(2 * np.pi * (t * rng.uniform(1, 2) + rng.uniform()))
        curve = 0.5 + (t[:, None] - 0.5) * along + bent[:, None] * across
        line(layer, curve * size, max(1, size // part))
    _paint(pixels, colour, layer, 0.8)


def _glands(pixels: Floats, radii: tuple[float, float], step: float, rng: Rng) -> None:
    size = len(pixels)
    for y in np.arange(step / 2, 1, step):
        for x in np.arange(step / 2, 1, step):
            centre = _pixel(size, np.array((x, y)) + rng.normal(0, 0.02, 2))
            axes = _pixel(size, rng.uniform(*radii, 2))
            for colour, scale in ((PURPLE, 1.0), ((222, 190, 222), 0.72), (WHITE, 0.35)):
                layer = np.zeros((size, size), np.uint8)
                inner = (max(1, round(scale * axes[0])), max(1, round(scale * axes[1])))
                cv2.ellipse(layer, centre, inner, 0, 0, 360, 255, -1, cv2.LINE_AA)
                _paint(pixels, colour, layer, 0.9)


def _paint(pixels: Floats, colour: Colour, layer: Layer, strength: float) -> None:
    mix(pixels, colour, layer.astype(np.float32) * np.float32(strength / 255))


def _pixel(size: int, point: np.ndarray | tuple[float, float]) -> tuple[int, int]:
    return max(0, round(float(point[0]) * size)), max(0, round(float(point[1]) * size))
