"""Draw plots as SVG for a page: matplotlib draws them, and their colours become CSS variables of the page.

A plot is as wide as a telephone, so that its text never shrinks below its size. Series differ in dash and marker, not
only in colour.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.scoring.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 340, 230
"""Size of a plot in CSS pixels on a telephone."""

ROW = 34
"""Height of a row of ``forest`` in pixels."""

LABEL, LEGEND = 22, 34
"""Characters of the label of a row, and of a line of the legend."""

MAX_POINTS = 300
"""Points of a line. Longer series are averaged."""

DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P")
SERIES = len(DASHES)
"""Series of one plot that differ in dash and marker."""

_INK, _GRID, _AXIS = "#010101", "#020202", "#030303"
_COLOURS = tuple(f"#0000f{number}" for number in range(1, SERIES + 1))
_VARIABLES: Mapping[str, str] = {
    _INK: "var(--text)",
    _GRID: "var(--line)",
    _AXIS: "var(--strong-line)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_COLOURS, 1)},
}
"""Colour in matplotlib -> CSS variable in the page."""

_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _AXIS,
    "xtick.color": _AXIS,
    "ytick.color": _AXIS,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.parse_math": False,
    "axes.unicode_minus": False,
}


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One row of ``forest``: its label and estimate. ``quiet``: a baseline, with a hollow marker."""

    label: str
    estimate: Estimate
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """One line. ``low`` and ``high`` limit the band around it. Empty: it has none."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def forest(title: str, rows: Sequence[ForestRow], axis: str, *, zero: bool = False, scale: float = 100) -> str:
    """Return estimates with their intervals as one row each.

    Args:
        title: the text for screen readers.
        rows: the estimates.
        axis: the name of the axis, with its unit.
        zero: mark no difference.
        scale: the factor from an estimate to the axis. 100: percent.
    """
    with _drawing(title, max(130, 56 + ROW * len(rows))) as (figure, axes):
        for place, row in enumerate(rows):
            _draw_estimate(axes, place, row, scale)
        if zero:
            axes.axvline(0, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(axis)
        _widen(axes, rows, scale, zero=zero)
        axes.grid(axis="x")
        return _svg(figure, title)


def lines(title: str, series: Sequence[Series], axis: str = "optimizer step", *, unit: bool = False) -> str:
    """Return lines with bands. ``unit``: the values are fractions, whose axis is from 0 to 1."""
    from matplotlib.ticker import MaxNLocator

    with _drawing(title, HEIGHT + _legend_height(series)) as (figure, axes):
        for number, one in enumerate(series):
            _draw_line(axes, number, averaged(one), (0.0, 1.0) if unit else None)
        if unit:
            axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
        axes.grid()
        _legend(figure, series)
        return _svg(figure, title)


def square(
    title: str, series: Sequence[Series], axes_of: tuple[str, str], bars: Sequence[tuple[float, Estimate]] = ()
) -> str:
    """Return lines in the unit square with its diagonal, such as ROC curves.

    Args:
        title: the text for screen readers.
        series: the lines.
        axes_of: the names of both axes.
        bars: x and estimate of points with intervals.
    """
    with _drawing(title, WIDTH - 20 + _legend_height(series)) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=_AXIS, linewidth=1, linestyle=(0, (4, 3)))
        for number, one in enumerate(series):
            _draw_line(axes, number, one)
        for x, estimate in bars:
            if estimate.value is not None and estimate.low is not None and estimate.high is not None:
                axes.plot([x, x], [estimate.low, estimate.high], color=_COLOURS[0], linewidth=1.5)
                axes.plot([x], [estimate.value], "o", color=_COLOURS[0], markersize=5)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=axes_of[0], ylabel=axes_of[1])
        axes.grid()
        _legend(figure, series)
        return _svg(figure, title)


def averaged(series: Series) -> Series:
    """Return a series of at most ``MAX_POINTS`` points: means of neighbouring points."""
    size = -(-len(series.xs) // MAX_POINTS)
    if size <= 1:
        return series

    def means(values: Sequence[float]) -> list[float]:
        return [float(np.mean(values[start : start + size])) for start in range(0, len(values), size)]

    return Series(series.label, means(series.xs), means(series.ys), means(series.low), means(series.high))


@contextmanager
def _drawing(title: str, height: float) -> "Iterator[tuple[Figure, Axes]]":
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        yield figure, axes


def _draw_estimate(axes: "Axes", place: int, row: ForestRow, scale: float) -> None:
    found, colour = row.estimate, _INK if row.quiet else _COLOURS[0]
    # Each line is a text of its own, because the page draws them in another font, with other widths.
    for line, text in zip((place - 0.2, place + 0.22), (_short(row.label), f"n {found.n:,}"), strict=True):
        axes.text(-0.03, line, text, transform=axes.get_yaxis_transform(), ha="right", va="center")
    if found.value is None:
        axes.text(0.02, place, "no value", transform=axes.get_yaxis_transform(), va="center")
        return
    if found.low is not None and found.high is not None:
        axes.plot([scale * found.low, scale * found.high], [place, place], color=colour, linewidth=2)
    axes.plot(
        [scale * found.value],
        [place],
        "s" if row.quiet else "o",
        color=colour,
        markersize=7,
        markerfacecolor="none" if row.quiet else colour,
    )


def _widen(axes: "Axes", rows: Sequence[ForestRow], scale: float, *, zero: bool) -> None:
    """Set the range of x, which is at least a tenth, so that a small difference does not look large."""
    ends = [end for row in rows for end in (row.estimate.low, row.estimate.value, row.estimate.high) if end is not None]
    low, high = min([*ends, *([0.0] if zero else [])], default=0.0), max([*ends, *([0.0] if zero else [])], default=1.0)
    missing = max(0.0, 0.1 - (high - low)) / 2
    margin = 0.06 * max(high - low, 0.1)
    left, right = scale * (low - missing - margin), scale * (high + missing + margin)
    axes.set_xlim(left, right)
    if not zero and scale == 100 and low >= 0 and high <= 1:
        axes.set_xticks([tick for tick in axes.get_xticks() if max(left, 0) <= tick <= min(right, 100)])


def _draw_line(axes: "Axes", number: int, one: Series, limits: tuple[float, float] | None = None) -> None:
    style = number % SERIES
    marker = MARKERS[style] if len(one.xs) <= 12 else ""
    axes.plot(
        one.xs, one.ys, color=_COLOURS[style], linestyle=DASHES[style], linewidth=1.8, marker=marker, markersize=4
    )
    if len(one.low):
        low, high = (one.low, one.high) if limits is None else (np.clip(end, *limits) for end in (one.low, one.high))
        axes.fill_between(one.xs, low, high, color=_COLOURS[style], alpha=0.18, linewidth=0)


def _legend(figure: "Figure", series: Sequence[Series]) -> None:
    """Draw the legend below the plot, where it hides no line."""
    from matplotlib.lines import Line2D

    if len(series) < 2:
        return
    handles = [
        Line2D([], [], color=_COLOURS[number % SERIES], linestyle=DASHES[number % SERIES], linewidth=1.8)
        for number in range(len(series))
    ]
    names = [_short(one.label, LEGEND) for one in series]
    figure.legend(handles, names, loc="outside lower left", ncols=_columns(series), frameon=False, handlelength=2.2)


def _legend_height(series: Sequence[Series]) -> int:
    """Return the height of the legend in pixels."""
    return 18 * -(-len(series) // _columns(series)) if len(series) > 1 else 0


def _columns(series: Sequence[Series]) -> int:
    """Return the columns of the legend: two, if every label fits into half of the width."""
    return 2 if all(len(one.label) <= LEGEND // 2 - 3 for one in series) else 1


def _short(label: str, most: int = LABEL) -> str:
    """Return a label of at most ``most`` characters.

    >>> _short("colorectal adenocarcinoma epithelium")
    'colorectal adenocarci…'
    """
    return label if len(label) <= most else f"{label[: most - 1].rstrip()}…"


def _svg(figure: "Figure", title: str) -> str:
    """Return the drawing without XML header, with CSS variables as colours and without unused ids."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = StringIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    opening = f'class="plot" role="img" aria-label="{escape(title)}"'
    text = re.sub(r'^<svg [^>]*(viewBox="[^"]*")[^>]*>', lambda found: f"<svg {opening} {found[1]}>", text, count=1)
    return re.sub(r"\n\s*", "\n", text).strip()
