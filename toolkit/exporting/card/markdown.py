"""Write Markdown tables and lists, with escaped text."""

from collections.abc import Sequence

MARKS = "\\`*|<>"
"""Characters with a meaning in Markdown or HTML."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table. The first column is text, the others are figures."""
    rule = "| --- |" + " ---: |" * (len(head) - 1)
    return "\n".join([_line(head), rule, *(_line(row) for row in rows)])


def cell(text: str) -> str:
    """Return a text on one line, with ``MARKS`` escaped."""
    for mark in MARKS:
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def bullets(lines: Sequence[str]) -> str:
    """Return a list with one line per item."""
    return "\n".join(f"- {line}" for line in lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell(text) for text in cells)} |"
