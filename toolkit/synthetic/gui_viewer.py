"""Draw one screen of the synthetic viewer: a body slice between distinguishable widgets."""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from toolkit.errors import DataError
from toolkit.synthetic.gui_icons import ICONS, Brush, Colour
from toolkit.synthetic.gui_layouts import Layout
from toolkit.synthetic.gui_widgets import WIDE, WIDGETS, Widget
from toolkit.synthetic.radiograph import Rng

Screen = NDArray[np.uint8]
"""Shape (side, side, 3), red, green, blue."""
Pixels = tuple[int, int, int, int]
"""Left, top, right, bottom. The last two are exclusive."""

LEAST_SIDE = 112
"""Minimum side in pixels. Names and icons do not fit below it."""
LETTER_HEIGHT = 0.052
"""Fraction of the screen's side."""
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)


def draw_screen(layout: Layout, size: int, rng: Rng) -> Screen:
    """Return the viewer with a random body slice, ``size`` x ``size`` pixels.

    No element reveals the progress of the task: the text field is always empty, and the slider's position is random.

    Raises:
        DataError: The side is below ``LEAST_SIDE``.
    """
    if size < LEAST_SIDE:
        rule = f"sides must be at least {LEAST_SIDE} pixels"
        raise DataError("synthetic.size_too_small", rule, place="size", value=size, remedy="Raise it.")
    image = Image.new("RGB", (size, size), (layout.shade,) * 3)
    draw = ImageDraw.Draw(image)
    font = _font(round(LETTER_HEIGHT * size))
    image.paste(_draw_slice(layout.pane.pixels(size), rng), layout.pane.pixels(size)[:2])
    for name, box in layout.boxes.items():
        _draw_widget(draw, WIDGETS[name], box.pixels(size), (font, rng.random()))
    return np.array(image)


def _draw_widget(
    draw: ImageDraw.ImageDraw, widget: Widget, box: Pixels, look: tuple[ImageFont.FreeTypeFont, float]
) -> None:
    font, chance = look
    ink = BLACK if _brightness(widget.colour) > 128 else WHITE
    x1, y1, x2, y2 = box
    # Pillow's rectangles include their last pixel.
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=widget.colour, outline=ink)
    face = _face(widget, box, (font.getlength(widget.name), font.size))
    ICONS[widget.name](Brush(draw, face.icon, ink, widget.colour), chance)
    draw.text(face.name, widget.name, fill=ink, font=font, anchor="lm")


def _brightness(colour: Colour) -> float:
    """Return the luma of ITU-R BT.601, 0 to 255."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


class _Face(NamedTuple):
    """Box of a widget's icon, and left centre of its name."""

    icon: tuple[float, float, float, float]
    name: tuple[float, float]


def _face(widget: Widget, box: Pixels, text: tuple[float, float]) -> _Face:
    """Return the face of a widget: bars have name then icon, flat buttons icon then name, others icon over name."""
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    long, high = text
    middle = (y1 + y2) / 2
    if widget.name in WIDE:
        left, side = x1 + long + height * 0.3, height * 0.7
        return _Face((left, middle - side / 2, x2 - height * 0.2, middle + side / 2), (x1 + height * 0.15, middle))
    if width < 1.7 * height:
        side = min(height * 0.84 - high, width * 0.8)
        left, top = (x1 + x2 - side) / 2, y1 + height * 0.08
        return _Face((left, top, left + side, top + side), ((x1 + x2 - long) / 2, y2 - height * 0.09 - high / 2))
    side = min(height * 0.8, width * 0.9 - long)
    gap = (width - side - long) / 3
    left = x1 + gap
    return _Face((left, middle - side / 2, left + side, middle + side / 2), (left + side + gap, middle))


@cache
def _font(height: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(height)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TypeError("Pillow must be built with FreeType")
    return font


def _draw_slice(box: Pixels, rng: Rng) -> Image.Image:
    """Return a grey body slice with organs and noise, as large as the box."""
    width, height = box[2] - box[0], box[3] - box[1]
    image = Image.new("L", (width, height), 8)
    draw = ImageDraw.Draw(image)
    radius = min(width, height) * rng.uniform(0.4, 0.48)
    x, y = width / 2 + rng.normal(0, 0.02) * width, height / 2
    _ellipse(draw, (x, y), (radius * rng.uniform(1.0, 1.3), radius), int(rng.integers(70, 110)))
    for _ in range(rng.integers(3, 7)):
        spot = (x + rng.uniform(-0.5, 0.5) * radius, y + rng.uniform(-0.5, 0.5) * radius)
        axes = (radius * rng.uniform(0.1, 0.35), radius * rng.uniform(0.1, 0.35))
        _ellipse(draw, spot, axes, int(rng.integers(20, 190)))
    noise = rng.integers(-12, 13, (height, width), np.int16)
    pixels = np.clip(np.asarray(image, np.int16) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB")


def _ellipse(draw: ImageDraw.ImageDraw, centre: tuple[float, float], axes: tuple[float, float], value: int) -> None:
    (x, y), (a, b) = centre, axes
    draw.ellipse((x - a, y - b, x + a, y + b), fill=value)
