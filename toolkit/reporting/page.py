"""Write a report as one HTML file without any reference to a network."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from math import atan2, cos, pi, sin

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from toolkit import __version__
from toolkit.data.shapes import Shape
from toolkit.identifiers import LINES, printable
from toolkit.reporting.blocks import Examples, Plot, Report
from toolkit.runfolder import hide_secrets

MARK = 4
"""Half the side of the mark of a point, in hundredths of the longest side of the image."""

KEPT = f"{LINES}\r"
"""Control characters that a browser shows as space."""


def html_page(report: Report) -> str:
    """Return the report as HTML. Every text of a row is escaped, and only the script of the page can run."""
    folder = files("toolkit.reporting") / "templates"
    style, script, template = (
        (folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "report.html.jinja")
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters |= {"path": shape_path, "labels": shape_labels, "tagged": count_tagged, "drawing": drawing}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(template).render(
        report=report, style=Markup(style), script=Markup(script), script_digest=digest, version=__version__
    )


def drawing(plot: Plot) -> Markup:
    """Return the drawing of a plot, whose texts matplotlib has escaped."""
    return Markup(printable(plot.svg, KEPT))


def _shown(found: object) -> object:
    """Return a value of the template without control characters and tokens. Images have neither."""
    if type(found) is not str or found.startswith("data:image/"):
        return found
    return hide_secrets(printable(found, KEPT))


def shape_path(shape: Shape, side: str, unit: float) -> str:
    """Return a shape as the path of an SVG.

    Args:
        shape: the shape.
        side: ``reference`` or ``predicted``, whose points have different marks.
        unit: one hundredth of the longest side of the image.

    >>> shape_path(Shape("box", (1, 2, 3, 4)), "reference", 1)
    'M1 2H3V4H1Z'
    """
    if shape.kind == "box":
        x1, y1, x2, y2 = shape.numbers
        return f"M{x1:g} {y1:g}H{x2:g}V{y2:g}H{x1:g}Z"
    if shape.kind == "outline":
        return f"M{_joined(shape.numbers)}Z"
    if shape.kind == "arrow":
        return _arrow(shape.numbers, MARK * unit)
    x, y = shape.numbers
    size = MARK * unit
    if side == "reference":  # a circle, so that the marks of two points at one place differ
        return f"M{x - size:g} {y:g}a{size:g} {size:g} 0 1 0 {2 * size:g} 0a{size:g} {size:g} 0 1 0 {-2 * size:g} 0Z"
    return f"M{x - size:g} {y - size:g}L{x + size:g} {y + size:g}M{x - size:g} {y + size:g}L{x + size:g} {y - size:g}"


def shape_labels(shapes: Sequence[Shape]) -> str:
    """Return the labels of shapes, such as ``: cyst, nodule``.

    >>> shape_labels([Shape("box", (), "cyst"), Shape("box", (), "cyst")])
    ': cyst'
    """
    names = ", ".join(dict.fromkeys(shape.label for shape in shapes if shape.label))
    return f": {names}" if names else ""


def count_tagged(block: Examples, name: str) -> int:
    """Return the number of examples that a filter shows."""
    if name == "changed":
        return sum(one.changed for one in block.examples)
    if name == "worst":
        return sum(one.worst > 0 for one in block.examples)
    return sum(one.outcome == name for one in block.examples)


def _arrow(numbers: Sequence[float], size: float) -> str:
    x1, y1, x2, y2 = numbers
    angle = atan2(y2 - y1, x2 - x1)
    ends = [(x2 - size * cos(angle + turn), y2 - size * sin(angle + turn)) for turn in (pi / 6, -pi / 6)]
    head = "".join(f"M{x:g} {y:g}L{x2:g} {y2:g}" for x, y in ends)
    return f"M{x1:g} {y1:g}L{x2:g} {y2:g}{head}"


def _joined(numbers: Sequence[float]) -> str:
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return "L".join(f"{x:g} {y:g}" for x, y in pairs)
