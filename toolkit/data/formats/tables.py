"""Tables of text: comma-separated (.csv), tab-separated (.tsv), or with another separator if it is certain (.txt)."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.formats.row_file import RowFile
from toolkit.data.json_stream import SPREADSHEETS, Record, around, conversion
from toolkit.errors import DataError
from toolkit.identifiers import masked, shown_cell, without_names

NOT_UTF8 = ("data.not_utf8", "the file must be UTF-8")

HEAD_BYTES, HEAD_LINES = 1 << 18, 200
"""Start of a .txt that determines its separator and whether it has a header."""

MAX_CELL_CHARS = 1 << 26
"""A longer cell indicates a missing quotation mark. The default of Python is 128 KB, less than an image in base64."""

NEARLY_ALL = 0.9
"""Fraction of the lines of a .txt that must look like those of a table."""

_SEPARATORS = {"\t": "a tab", "|": "|", ";": "a semicolon"}

_COLUMN_NAMES = frozenset(
    {
        *("id", "qid", "image", "images", "image_id", "img_id", "image_name", "img_name", "image_path", "file"),
        *("file_name", "filename", "path", "question", "answer", "answers", "category", "question_type"),
        *("answer_type", "caption", "report", "text", "label", "split", "patient", "patient_id"),
    }
)
"""Names that a first line must have, one at least, to be a header of a .txt."""

_WITHOUT_HEADER = {3: ("image", "question", "answer"), 4: ("image", "category", "question", "answer")}
"""Columns of a .txt without a header, as VQA-Med 2019 publishes its questions (CLEF 2019 Working Notes, paper 272)."""


@dataclass(frozen=True, slots=True)
class TableLayout:
    """How a table of text is read. ``columns`` are the names if the first line does not name them."""

    separator: str
    columns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the layout in messages."""
        if not self.columns:
            return f"text separated by {_SEPARATORS[self.separator]}"
        columns = ", ".join(self.columns)
        return f"text separated by {_SEPARATORS[self.separator]}, without a header, read as {columns} (VQA-Med 2019)"


def text_layout(file: RowFile) -> TableLayout | None:
    """Return the layout of a .txt, or None if it is not certainly a table.

    Exactly one of tab, ``|`` and semicolon must be in every line, equally often.

    Raises:
        DataError: It is a table, and neither names its columns nor has those of VQA-Med 2019.
    """
    text = file.head(HEAD_BYTES).decode("utf-8-sig", "ignore")
    lines = text.splitlines()[: -1 if len(text) >= HEAD_BYTES // 4 else None][:HEAD_LINES]
    lines = [line for line in lines if line.strip()]
    counts = {sign: {line.count(sign) for line in lines} for sign in _SEPARATORS}
    found = [sign for sign, numbers in counts.items() if len(numbers) == 1 and 0 not in numbers]
    if len(found) != 1:
        _check_regular(lines, file)
        return None
    separator = found[0]
    rows = [[cell.strip() for cell in line.split(separator)] for line in lines]
    if _COLUMN_NAMES & {cell.strip('"').lower().replace(" ", "_") for cell in rows[0]}:
        return TableLayout(separator)
    if (columns := _WITHOUT_HEADER.get(len(rows[0]))) and _has_questions([row[-2] for row in rows]):
        return TableLayout(separator, columns)
    rule = "the first line must name the columns"
    remedy = f"Add a first line such as {separator.join(('image', 'question', 'answer'))!r}."
    raise DataError(
        "data.table_without_header", rule, place=f"{file.place}, line 1", value=masked(lines[0]), remedy=remedy
    )


def _check_regular(lines: Sequence[str], file: RowFile) -> None:
    """Check that a text is not a table with a few lines that have another number of separators."""
    for sign in _SEPARATORS:
        (number, count), *_ = Counter(line.count(sign) for line in lines).most_common(1) or [(0, 0)]
        if number and NEARLY_ALL * len(lines) <= count < len(lines):
            at, line = next((at, line) for at, line in enumerate(lines, 1) if line.count(sign) != number)
            rule = f"a table of text must have {sign!r} equally often in each line ({number} times)"
            remedy = "Correct the line, or convert the file to CSV."
            place = f"{file.place}, line {at:,} that is not blank"
            raise DataError("data.text_table_irregular", rule, place=place, value=masked(line), remedy=remedy)


def read_table(file: RowFile, _: EmbeddedImageStore) -> Iterator[Record]:
    """Read all cells as text, so that identifiers keep leading zeros.

    Raises:
        DataError: The table is invalid.
    """
    layout = text_layout(file) if file.suffix == ".txt" else TableLayout("\t" if file.suffix == ".tsv" else ",")
    _check_first_line(file)
    csv.field_size_limit(MAX_CELL_CHARS)
    with file.open() as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        rows = csv.reader(text, strict=True, delimiter=layout.separator if layout else ",")
        try:
            header = list(layout.columns if layout else ()) or _header(next(rows, []), file)
            for cells in rows:
                if cells:
                    yield None, _cells(header, cells, f"{file.place}, line {rows.line_num:,}"), None
        except UnicodeDecodeError as error:
            raise _not_utf8(file, error) from None
        except csv.Error as error:
            rule, place = "the table must be valid", f"{file.place}, line {rows.line_num:,}"
            remedy = "Look for a quotation mark that is missing or not doubled."
            value = without_names(str(error))
            raise DataError("data.csv_invalid", rule, place=place, value=value, remedy=remedy) from None
        finally:
            text.detach()


def _has_questions(cells: Sequence[str]) -> bool:
    """Return whether nearly all cells are questions, so that a line without names of columns is certain."""
    return sum(cell.endswith("?") for cell in cells) >= NEARLY_ALL * len(cells)


def _not_utf8(file: RowFile, error: UnicodeDecodeError) -> DataError:
    """Return the error of a table with a byte that is not UTF-8, with its line."""
    place, found = file.place, around(error)
    with file.open() as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as first:
                place, found = f"{file.place}, line {number:,}", around(first)
                break
    return DataError(*NOT_UTF8, place=place, value=found, remedy=conversion(file.head(4)))


def _check_first_line(file: RowFile) -> None:
    """Check the encoding and the separator of a table by its first line."""
    head = file.head(HEAD_BYTES)
    if b"\0" in head[:2] or head.startswith(SPREADSHEETS):
        found = masked(head[:20].decode("ascii", "replace"))
        raise DataError(*NOT_UTF8, place=file.place, value=found, remedy=conversion(head))
    first, place = next(iter(head.decode("utf-8-sig", "ignore").splitlines()), ""), f"{file.place}, line 1"
    if re.match(r"sep=.?\Z", first):
        rule, remedy = "the first line must name the columns", "Remove this line, which only Excel reads."
        raise DataError("data.csv_header_invalid", rule, place=place, value=first, remedy=remedy)
    names = re.sub(r'"[^"]*"', "", first)
    other = max((";", "\t", "|"), key=names.count)
    if file.suffix == ".csv" and "," not in names and other in names:
        rule = "the columns of a .csv must be separated by commas"
        remedy = "Name the file .tsv if a tab separates the columns, or .txt for a semicolon or |."
        raise DataError("data.csv_separator", rule, place=place, value=other, remedy=remedy)


def _header(names: list[str], file: RowFile) -> list[str]:
    place = f"{file.place}, line 1"
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if not names or twice:
        rule, remedy = "the first line must name the columns, each once", "Rename or remove the repeated columns."
        remedy = remedy if names else "Add a first line with the names of the columns."
        raise DataError(
            "data.csv_header_invalid",
            rule,
            place=place,
            value=[shown_cell(one) for one in twice or names],
            remedy=remedy,
        )
    return names


def _cells(header: list[str], cells: list[str], place: str) -> dict[str, str]:
    if len(cells) != len(header):
        rule = f"a row must have as many cells as the header ({len(header)})"
        remedy = "Put cells that have the separator in quotation marks."
        raise DataError("data.csv_cell_count", rule, place=place, value=len(cells), remedy=remedy)
    return dict(zip(header, cells, strict=True))
