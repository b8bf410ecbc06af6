"""Tables of metadata: cells of a CSV however it was saved, and columns found by name."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import DataError

BLANK = frozenset({"", "na", "n/a", "nan", "none", "null"})
"""What stands in a cell that says nothing, in lower case."""


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV: its first line, and all lines after it with as many cells."""

    file: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, names: Sequence[str]) -> int | None:
        """The number of the first of these names that is a column, in any case; None: none of them is."""
        folded = [name.lower() for name in self.header]
        return next((folded.index(name.lower()) for name in names if name.lower() in folded), None)

    def records(self, fields: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
        """Each row as field -> text, for the fields whose column is there; blank cells are empty texts."""
        found = {field: at for field, names in fields.items() if (at := self.column(names)) is not None}
        for row in self.rows:
            yield {field: row[at] for field, at in found.items()}


def read_table(file: Path) -> Table:
    """A table with any of the usual separators (comma, semicolon, tab), line ends, and a byte order mark or none.

    Raises:
        DataError: it cannot be read, is not UTF-8, or a row has more or fewer cells than the first line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        rule, remedy = "a table must be UTF-8", "Save it as UTF-8."
        raise DataError("data.not_utf8", rule, place=file, value=error.reason, remedy=remedy) from None
    except OSError as error:
        rule, remedy = "a table must be readable", "Correct the path, or change its permissions."
        value = error.strerror or str(error)
        raise DataError("data.file_not_readable", rule, place=file, value=value, remedy=remedy) from None
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator)
    rows = []
    try:
        for cells in reader:
            if cells and any(cells):
                rows.append(tuple(_plain(cell) for cell in cells))
                if len(cells) != len(rows[0]):
                    rule = f"a row must have as many cells as the first line ({len(rows[0])})"
                    place, remedy = f"{file}, line {reader.line_num:,}", "Correct the line."
                    raise DataError("data.csv_cell_count", rule, place=place, value=len(cells), remedy=remedy)
    except csv.Error as error:
        rule, place = f"the CSV must be valid: {error}", f"{file}, line {reader.line_num:,}"
        raise DataError("data.csv_invalid", rule, place=place, remedy="Correct the file.") from None
    if not rows:
        rule, remedy = "a table must have a first line with the names of its columns", "Add this line."
        raise DataError("data.csv_header_invalid", rule, place=file, remedy=remedy)
    return Table(file, tuple(rows[0]), tuple(rows[1:]))


def require_columns(table: Table, fields: Mapping[str, Sequence[str]]) -> None:
    """Check that every one of these fields has its column.

    Raises:
        DataError: some have none; all that were looked for are listed.
    """
    missing = [names for names in fields.values() if table.column(names) is None]
    if missing:
        wanted = "; ".join(" or ".join(names) for names in missing)
        there = ", ".join(table.header)
        rule, remedy = f"the table must have a column {wanted}", "Add it, or rename a column."
        raise DataError("data.column_missing", rule, place=table.file, value=there, remedy=remedy)


def read_number(text: str) -> float | None:
    """The number that a cell holds; None where it holds none, or one that is not finite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _plain(cell: str) -> str:
    text = cell.strip()
    return "" if text.lower() in BLANK else text
