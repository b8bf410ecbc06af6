"""Layouts of the synthetic viewer: six applications, each with its buttons in random order."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from toolkit.synthetic.gui_widgets import BUTTONS, WIDE, WIDGETS
from toolkit.synthetic.radiograph import Rng

GAP = 0.008
WIDE_HEIGHT = 0.14
"""Fractions of the screen's side: the margin around each widget, and the height of a wide widget with its margin."""


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
    names = list(_APPLICATIONS)
    application = names[rng.integers(len(names))]
    slots, middle = _APPLICATIONS[application](rng)
    boxes = {name: slots[i].inner(GAP) for name, i in zip(BUTTONS, rng.permutation(len(slots)).tolist(), strict=False)}
    bars, pane = _bars(middle, rng)
    boxes |= {name: bars[i].inner(GAP) for name, i in zip(WIDE, rng.permutation(len(WIDE)).tolist(), strict=True)}
    shade = int(rng.integers(40, 110))
    return Layout(application, shade, pane.inner(GAP), {name: boxes[name] for name in WIDGETS})


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


_APPLICATIONS: Mapping[str, Callable[[Rng], Panels]] = {
    "SliceView": _left,
    "RadDesk": _right,
    "ScanPad": _top,
    "TomoBase": _bottom,
    "VoxelBox": _sides,
    "PaneWorks": _ends,
}
APPLICATIONS = tuple(_APPLICATIONS)


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
