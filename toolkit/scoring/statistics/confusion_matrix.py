"""Confusion matrix of labels, and its plot. An unparsed answer is None and counts as wrong."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import fill

import numpy as np

from toolkit.errors import DataError

UNREADABLE = "(unreadable)"
"""The column of unparsed answers."""

_OTHER = "(other)"
"""The column of predicted labels that never occur as true labels."""

_CELL, _SIDE = 0.75, 24.0
"""Inches per cell, and maximum inches of all cells in a row. Beyond it, cells and text shrink."""

_POINTS, _LETTERS = 11, 9
"""Font size in a full-size cell, and letters per inch of the title."""


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """How often each true label was answered with each label.

    Attributes:
        labels: the true labels in order.
        counts: true label -> predicted label -> count, without zeros.
    """

    labels: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]


def confusion_matrix(true: Sequence[str], predicted: Sequence[str | None]) -> ConfusionMatrix:
    """Return how often each true label was answered with each label."""
    pairs = Counter((a, UNREADABLE if b is None else b) for a, b in zip(true, predicted, strict=True))
    labels = sorted(set(true))
    counts = {a: {b: n for (row, b), n in sorted(pairs.items()) if row == a} for a in labels}
    return ConfusionMatrix(tuple(labels), counts)


def plot_confusion_matrix(confusion: ConfusionMatrix, file: Path, title: str) -> Path:
    """Write a PNG with one row per true label and one column per answer.

    Cells have the count and its fraction of the row. Unparsed answers and labels that are never true have columns at
    the right if they occur. Cells with 0 are blank. The output is deterministic and the write is atomic. Parent folders
    are created.

    Returns:
        ``file``.

    Raises:
        DataError: The matrix is empty.
    """
    if not confusion.labels:
        raise DataError("evaluate.confusion_empty", "a confusion matrix must have at least one answer", place=file)
    columns, counts = confusion_table(confusion)
    encoded = _draw(confusion.labels, columns, counts, title)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    temporary.write_bytes(encoded)
    temporary.replace(file)
    return file


def confusion_table(confusion: ConfusionMatrix) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the column names and the counts with shape (rows, columns)."""
    rows = [dict(confusion.counts.get(label, {})) for label in confusion.labels]
    table = [[row.pop(label, 0) for label in confusion.labels] for row in rows]
    unreadable = [row.pop(UNREADABLE, 0) for row in rows]
    extra = {_OTHER: [sum(row.values()) for row in rows], UNREADABLE: unreadable}
    found = {name: column for name, column in extra.items() if any(column)}
    counts = np.column_stack([np.array(table, dtype=int), *found.values()])
    return (*confusion.labels, *found), counts


def _draw(rows: tuple[str, ...], columns: tuple[str, ...], counts: np.ndarray, title: str) -> bytes:
    """Return the plot as PNG. It uses its own Figure and leaves matplotlib's global state alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    side = min(_CELL, _SIDE / len(columns))
    width, height, size = side * len(columns) + 2.4, side * len(rows) + 2.0, _POINTS * side / _CELL
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    fractions = counts / counts.sum(axis=1, keepdims=True)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(counts):
        fraction = fractions[row, column]
        words = axes.text(
            column, row, f"{counts[row, column]}\n{100 * fraction:.0f} %", ha="center", va="center", size=size
        )
        words.set(color="white" if fraction > 0.5 else "black", in_layout=False)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", size=size)
    axes.set_yticks(range(len(rows)), rows, size=size)
    if len(columns) > len(rows):
        axes.axvline(len(rows) - 0.5, color="0.3", linewidth=1.5)
    figure.suptitle(fill(title, int(_LETTERS * width)))
    axes.set(xlabel="answered", ylabel="true")
    # A dollar sign in a label must not start math mode.
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    encoded = BytesIO()
    FigureCanvasAgg(figure).print_png(encoded, metadata={"Software": None})
    return encoded.getvalue()
