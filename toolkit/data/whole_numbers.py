"""Columns of whole numbers that pandas stores as 2.0, because a column with missing values cannot have integers.

The answer 2 must be the same text in the training and the test rows. A column is read without decimal points if all of
its numbers are whole in every source, and a source with decimal points has missing values. Other columns stay as they
are: 2.0 can be a measurement.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from toolkit.data.cells import is_missing, is_whole_text
from toolkit.data.json_stream import Row


@dataclass(slots=True)
class Numbers:
    """What a column of numbers has in one source.

    Attributes:
        whole: number of whole numbers with a decimal point.
        missing: number of missing values.
        other: whether it has another value than missing values and whole numbers.
    """

    whole: int = 0
    missing: int = 0
    other: bool = False


class NumberBuilder:
    """Counts the numbers of columns row by row. A column of texts is left after its first text."""

    def __init__(self, columns: Iterable[str]) -> None:
        self._found = {column: Numbers() for column in columns}
        self._open = list(self._found)

    def add(self, row: Row) -> None:
        """Count the values of one row."""
        is_closed = False
        for column in self._open:
            found, value = self._found[column], row.get(column)
            if type(value) is int:
                continue
            if is_missing(value):
                found.missing += 1
            elif (isinstance(value, float) and value.is_integer()) or (isinstance(value, str) and is_whole_text(value)):
                found.whole += 1
            elif not isinstance(value, str) or not value.strip().removeprefix("-").isdecimal():
                found.other = is_closed = True
        if is_closed:
            self._open = [column for column in self._open if not self._found[column].other]

    def done(self) -> dict[str, Numbers]:
        """Return column -> counts, for columns with a number that has a decimal point, and for columns of texts."""
        return {column: found for column, found in self._found.items() if found.whole or found.other}


def whole_columns(sources: Iterable[Mapping[str, Numbers]]) -> tuple[str, ...]:
    """Return the columns to read without decimal points.

    >>> whole_columns([{"count": Numbers(whole=2, missing=1)}, {"count": Numbers(whole=5)}])
    ('count',)
    >>> whole_columns([{"count": Numbers(whole=2, missing=1)}, {"count": Numbers(whole=1, other=True)}])
    ()
    """
    found: dict[str, list[Numbers]] = {}
    for source in sources:
        for column, numbers in source.items():
            found.setdefault(column, []).append(numbers)
    return tuple(
        column
        for column, each in found.items()
        if any(one.whole and one.missing for one in each) and not any(one.other for one in each)
    )
