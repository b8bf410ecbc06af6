"""The nine widgets of the synthetic viewer and their actions."""

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.synthetic.gui_icons import Colour


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
