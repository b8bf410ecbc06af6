"""Write a report as Markdown: its texts and tables. Plots become the tables of their figures, examples are left out."""

from collections.abc import Iterable, Iterator, Sequence

from toolkit.identifiers import printable
from toolkit.reporting.blocks import Block, Code, Matrices, Plots, Report, Table, Text
from toolkit.runfolder import hide_secrets

MARKS = "\\`*|<>[]"
"""Characters with a meaning in Markdown or HTML."""


def markdown_page(report: Report) -> str:
    """Return the report as Markdown."""
    parts = [
        f"# {_escaped(report.title)}",
        "\n".join(f"- {_escaped(name)}: {_escaped(one)}" for name, one in report.facts),
    ]
    for part in report.parts:
        parts += [f"## {_escaped(part.title)}"]
        for section in part.sections:
            blocks = list(markdown_blocks(section.blocks))
            parts += [f"### {_escaped(section.title)}", *blocks] if blocks else []
    return hide_secrets("\n\n".join(part for part in parts if part) + "\n")


def markdown_blocks(blocks: Iterable[Block]) -> Iterator[str]:
    """Yield the paragraphs and tables of blocks."""
    for block in blocks:
        yield from _texts(block)


def markdown_table(table: Table) -> str:
    """Return a table as Markdown.

    >>> print(markdown_table(Table.of(("a", "b"), [("1|2", "3")])))
    | a | b |
    | --- | --- |
    | 1\\|2 | 3 |
    """
    lines: list[Sequence[str]] = [table.head, ["---"] * len(table.head), *table.rows]
    escaped = [line if number == 1 else [_escaped(cell) for cell in line] for number, line in enumerate(lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


def _texts(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        yield f"**Warning:** {_escaped(block.text)}" if block.tone == "warning" else _escaped(block.text)
    elif isinstance(block, Table):
        yield from _titled(block.caption, block)
    elif isinstance(block, Plots):
        for plot in block.plots:
            yield from _titled(plot.title, plot.table)
    elif isinstance(block, Matrices):
        for one in block.matrices:
            rows = [(label, *map(str, counts)) for label, counts in zip(one.labels, one.counts, strict=True)]
            yield from _titled(one.title, Table.of(("true", *one.columns), rows))
    elif isinstance(block, Code):
        fence = "`" * max(3, _longest_backticks(block.text) + 1)
        yield f"{fence}{block.language}\n{block.text}\n{fence}"


def _titled(title: str, table: Table) -> Iterator[str]:
    if title:
        yield f"**{_escaped(title)}**"
    yield markdown_table(table)


def _escaped(text: str) -> str:
    """Return a text on one line, with ``MARKS`` escaped."""
    for mark in MARKS:
        text = text.replace(mark, f"\\{mark}")
    return printable(" ".join(text.split()))


def _longest_backticks(text: str) -> int:
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    return longest
