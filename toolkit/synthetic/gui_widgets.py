"""The nine widgets of the synthetic viewer: their actions, colours and icons."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL import ImageDraw

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Widget:
    """A widget with its name on it and a unique colour."""

    name: str
    action: str
    """The action that a user performs on it."""
    colour: Colour
    look: str
    """Description without the name."""


WIDGETS: Mapping[str, Widget] = {
    widget.name: widget
    for widget in (
        Widget("open", "CLICK", (255, 140, 0), "orange button with a folder"),
        Widget("tone", "CLICK", (0, 205, 225), "cyan button with a half disc"),
        Widget("size", "CLICK", (250, 230, 30), "yellow button with a ruler"),
        Widget("save", "CLICK", (20, 165, 60), "green button with a disk"),
        Widget("send", "CLICK", (140, 50, 205), "purple button with an arrow"),
        Widget("zoom", "ZOOM", (30, 90, 240), "blue button with a magnifying glass"),
        Widget("mask", "SEGMENT", (215, 25, 25), "red button with a spot in a frame"),
        Widget("slice", "SCROLL", (255, 120, 200), "pink bar with a knob"),
        Widget("note", "TEXT", (255, 255, 255), "white field with a cursor"),
    )
}

WIDE = ("slice", "note")
"""Widgets as wide as the image pane. All others are buttons."""

BUTTONS = tuple(name for name in WIDGETS if name not in WIDE)


@dataclass(frozen=True, slots=True)
class Brush:
    """Draws inside a box. Points are fractions of its sides, from its upper left corner."""

    draw: ImageDraw.ImageDraw
    box: tuple[float, float, float, float]
    ink: Colour
    paper: Colour

    @property
    def width(self) -> int:
        """Line width in pixels."""
        return max(1, round((self.box[3] - self.box[1]) * 0.12))

    def at(self, *points: Point) -> list[Point]:
        """Return points in pixels."""
        x1, y1, x2, y2 = self.box
        return [(round(x1 + x * (x2 - x1)), round(y1 + y * (y2 - y1))) for x, y in points]

    def line(self, *points: Point) -> None:
        """Draw a line through these points."""
        self.draw.line(self.at(*points), fill=self.ink, width=self.width)

    def fill(self, *points: Point) -> None:
        """Draw a filled polygon with these corners."""
        self.draw.polygon(self.at(*points), fill=self.ink)

    def block(self, first: Point, last: Point, light: bool = False) -> None:
        """Draw a filled rectangle. ``light`` uses the widget's own colour."""
        self.draw.rectangle(self.at(first, last), fill=self.paper if light else self.ink)

    def disc(self, first: Point, last: Point) -> None:
        """Draw a filled ellipse in this rectangle."""
        self.draw.ellipse(self.at(first, last), fill=self.ink)

    def ring(self, first: Point, last: Point) -> None:
        """Draw the outline of an ellipse in this rectangle."""
        self.draw.ellipse(self.at(first, last), outline=self.ink, width=self.width)


def _folder(brush: Brush, _: float) -> None:
    brush.fill((0.05, 0.15), (0.4, 0.15), (0.5, 0.3), (0.95, 0.3), (0.95, 0.85), (0.05, 0.85))


def _half_disc(brush: Brush, _: float) -> None:
    brush.ring((0.08, 0.08), (0.92, 0.92))
    brush.draw.pieslice(brush.at((0.08, 0.08), (0.92, 0.92)), 90, 270, fill=brush.ink)


def _ruler(brush: Brush, _: float) -> None:
    brush.line((0.05, 0.75), (0.95, 0.75))
    for x, top in ((0.1, 0.2), (0.37, 0.45), (0.63, 0.45), (0.9, 0.2)):
        brush.line((x, top), (x, 0.75))


def _disk(brush: Brush, _: float) -> None:
    brush.block((0.1, 0.1), (0.9, 0.9))
    brush.block((0.3, 0.1), (0.7, 0.35), light=True)
    brush.block((0.25, 0.55), (0.75, 0.8), light=True)


def _arrow(brush: Brush, _: float) -> None:
    brush.fill((0.05, 0.38), (0.5, 0.38), (0.5, 0.1), (0.98, 0.5), (0.5, 0.9), (0.5, 0.62), (0.05, 0.62))


def _glass(brush: Brush, _: float) -> None:
    brush.ring((0.05, 0.05), (0.65, 0.65))
    brush.line((0.58, 0.58), (0.95, 0.95))


def _spot(brush: Brush, _: float) -> None:
    brush.disc((0.28, 0.25), (0.75, 0.7))
    for x, turn in ((0.05, 0.3), (0.95, 0.7)):
        for y, bend in ((0.05, 0.3), (0.95, 0.7)):
            brush.line((turn, y), (x, y), (x, bend))


def _slider(brush: Brush, chance: float) -> None:
    brush.line((0.02, 0.5), (0.98, 0.5))
    (x, y), radius = brush.at((0.1 + 0.8 * chance, 0.5))[0], (brush.box[3] - brush.box[1]) * 0.42
    brush.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=brush.ink)


def _cursor(brush: Brush, _: float) -> None:
    brush.line((0.05, 0.0), (0.05, 1.0))
    brush.line((0.15, 1.0), (0.98, 1.0))


ICONS: Mapping[str, Callable[[Brush, float], None]] = {
    "open": _folder,
    "tone": _half_disc,
    "size": _ruler,
    "save": _disk,
    "send": _arrow,
    "zoom": _glass,
    "mask": _spot,
    "slice": _slider,
    "note": _cursor,
}
"""Widget name -> its drawing function, which also gets a random number in [0, 1]."""
