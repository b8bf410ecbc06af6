"""Screens of the synthetic viewer: layouts of six applications, and a body slice between distinguishable widgets."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from toolkit.errors import DataError
from toolkit.synthetic import Bytes, Rng
from toolkit.synthetic.gui_widgets import BUTTONS, ICONS, WIDE, WIDGETS, Brush, Colour, Widget

GAP = 0.008

WIDE_HEIGHT = 0.14
"""Fractions of the screen's side: the margin around each widget, and the height of a wide widget with its margin."""

Pixels = tuple[int, int, int, int]
"""Left, top, right, bottom. The last two are exclusive."""

MIN_SIDE = 112
"""Minimum side in pixels. Names and icons do not fit below it."""

LETTER_HEIGHT = 0.052
"""Fraction of the screen's side."""

BLACK: Colour = (0, 0, 0)

WHITE: Colour = (255, 255, 255)


class Box(NamedTuple):
    """Left, top, right and bottom as fractions of the screen's side, 0 to 1."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def centre(self) -> tuple[float, float]:
        """x and y as fractions of the screen's side."""
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    def pixels(self, size: int) -> tuple[int, int, int, int]:
        """Return the box on a screen of this side, x2 and y2 exclusive."""
        x1, y1, x2, y2 = (round(fraction * size) for fraction in self)
        return x1, y1, x2, y2

    def inner(self, gap: float) -> "Box":
        """Return the box without a margin of this width."""
        return Box(self.x1 + gap, self.y1 + gap, self.x2 - gap, self.y2 - gap)


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions of all elements on the screens of one task."""

    application: str
    shade: int
    """Grey level of the background."""
    pane: Box
    """The box of the image."""
    boxes: Mapping[str, Box]
    """Widget name -> its box."""


def make_layout(rng: Rng) -> Layout:
    """Return a random application with its buttons in random order."""
    names = list(APPLICATIONS)
    application = names[rng.integers(len(names))]
    slots, middle = APPLICATIONS[application](rng)
    boxes = {name: slots[i].inner(GAP) for name, i in zip(BUTTONS, rng.permutation(len(slots)).tolist(), strict=False)}
    bars, pane = _bars(middle, rng)
    boxes |= {name: bars[i].inner(GAP) for name, i in zip(WIDE, rng.permutation(len(WIDE)).tolist(), strict=True)}
    shade = int(rng.integers(40, 110))
    return Layout(application, shade, pane.inner(GAP), {name: boxes[name] for name in WIDGETS})


def draw_screen(layout: Layout, size: int, rng: Rng) -> Bytes:
    """Return the viewer with a random body slice, shape (size, size, 3).

    No element reveals the progress of the task: the text field is always empty, and the slider's position is random.

    Raises:
        DataError: The side is below ``MIN_SIDE``.
    """
    if size < MIN_SIDE:
        rule = f"sides must be at least {MIN_SIDE} pixels"
        raise DataError("synthetic.size_too_small", rule, place="size", value=size, remedy="Raise it.")
    image = Image.new("RGB", (size, size), (layout.shade,) * 3)
    draw = ImageDraw.Draw(image)
    font = _font(round(LETTER_HEIGHT * size))
    image.paste(_draw_slice(layout.pane.pixels(size), rng), layout.pane.pixels(size)[:2])
    for name, box in layout.boxes.items():
        _draw_widget(draw, WIDGETS[name], box.pixels(size), (font, rng.random()))
    return np.array(image)


Panels = tuple[list[Box], Box]
"""Slots for buttons, at most one more than there are buttons, and the remaining box for the image and the bars."""


def _left(rng: Rng) -> Panels:
    width = rng.uniform(0.25, 0.31)
    return list(_grid(Box(0, 0, width, 1), 1, 7)), Box(width, 0, 1, 1)


def _right(rng: Rng) -> Panels:
    width = rng.uniform(0.25, 0.31)
    return list(_grid(Box(1 - width, 0, 1, 1), 1, 7)), Box(0, 0, 1 - width, 1)


def _top(rng: Rng) -> Panels:
    height = rng.uniform(0.28, 0.36)
    return list(_grid(Box(0, 0, 1, height), 4, 2)), Box(0, height, 1, 1)


def _bottom(rng: Rng) -> Panels:
    height = rng.uniform(0.28, 0.36)
    return list(_grid(Box(0, 1 - height, 1, 1), 4, 2)), Box(0, 0, 1, 1 - height)


def _sides(rng: Rng) -> Panels:
    width, height = rng.uniform(0.20, 0.25), rng.uniform(0.76, 1)
    columns = (Box(0, 0, width, height), Box(1 - width, 1 - height, 1, 1))
    return [slot for column in columns for slot in _grid(column, 1, 4)], Box(width, 0, 1 - width, 1)


def _ends(rng: Rng) -> Panels:
    height = rng.uniform(0.15, 0.18)
    rows = (Box(0, 0, 1, height), Box(0, 1 - height, 1, 1))
    return [slot for row in rows for slot in _grid(row, 4, 1)], Box(0, height, 1, 1 - height)


APPLICATIONS: Mapping[str, Callable[[Rng], Panels]] = {
    "SliceView": _left,
    "RadDesk": _right,
    "ScanPad": _top,
    "TomoBase": _bottom,
    "VoxelBox": _sides,
    "PaneWorks": _ends,
}


def _grid(box: Box, columns: int, rows: int) -> Iterator[Box]:
    width, height = (box.x2 - box.x1) / columns, (box.y2 - box.y1) / rows
    for row in range(rows):
        for column in range(columns):
            x, y = box.x1 + column * width, box.y1 + row * height
            yield Box(x, y, x + width, y + height)


def _bars(middle: Box, rng: Rng) -> tuple[list[Box], Box]:
    """Return two bars above, below or on both sides of the pane, and the pane between them."""
    above = int(rng.integers(3))
    tops = [middle.y1 + i * WIDE_HEIGHT for i in range(above)]
    tops += [middle.y2 - (i + 1) * WIDE_HEIGHT for i in range(len(WIDE) - above)]
    bars = [Box(middle.x1, top, middle.x2, top + WIDE_HEIGHT) for top in tops]
    below = len(WIDE) - above
    return bars, Box(middle.x1, middle.y1 + above * WIDE_HEIGHT, middle.x2, middle.y2 - below * WIDE_HEIGHT)


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
    """Return the face of a widget: bars have name then icon, low buttons icon then name, others icon over name."""
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
