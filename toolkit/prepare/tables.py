"""Metadata tables: CSV files in the usual dialects, with columns found by name."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import DataError

BLANK = frozenset({"", "na", "n/a", "nan", "none", "null"})
"""Cell texts that mean a missing value, in lower case."""


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file: header and rows of equal length."""

    file: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, names: Sequence[str]) -> int | None:
        """Return the index of the first name that is a column, ignoring case, or None."""
        folded = [name.lower() for name in self.header]
        return next((folded.index(name.lower()) for name in names if name.lower() in folded), None)

    def records(self, fields: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
        """Yield each row as field -> text for the fields that have a column. Missing values are empty texts."""
        found = {field: at for field, names in fields.items() if (at := self.column(names)) is not None}
        for row in self.rows:
            yield {field: row[at] for field, at in found.items()}


def read_table(file: Path) -> Table:
    """Load a CSV file with any of the separators comma, semicolon and tab, any line ends, with or without BOM.

    Raises:
        DataError: The file is unreadable or not UTF-8, or a row does not have as many cells as the header.
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
    """Check that every field has a column.

    Raises:
        DataError: Columns are missing. The error lists all of them.
    """
    missing = [names for names in fields.values() if table.column(names) is None]
    if missing:
        wanted = "; ".join(" or ".join(names) for names in missing)
        columns = ", ".join(table.header)
        rule, remedy = f"the table must have a column {wanted}", "Add it, or rename a column."
        raise DataError("data.column_missing", rule, place=table.file, value=columns, remedy=remedy)


def read_number(text: str) -> float | None:
    """Return the number in a cell, or None if it has no finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _plain(cell: str) -> str:
    text = cell.strip()
    return "" if text.lower() in BLANK else text
