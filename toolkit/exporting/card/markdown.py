"""Texts of a run inside Markdown: tables whose cells cannot break them."""

from collections.abc import Sequence

MARKS = "\\`*|<>"
"""What Markdown and HTML would read as their own."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    rule = "| --- |" + " ---: |" * (len(head) - 1)
    return "\n".join([_line(head), rule, *(_line(row) for row in rows)])


def cell(text: str) -> str:
    """A text on one line, with its marks escaped."""
    for mark in MARKS:
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def bullets(lines: Sequence[str]) -> str:
    """A list, one line an item."""
    return "\n".join(f"- {line}" for line in lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell(text) for text in cells)} |"
