"""Columns of values that pandas prints in another form: whole numbers as 2.0, and truth values as True.

A column with missing values cannot have integers in pandas, so that 2 becomes 2.0. The answer 2 must be the same text
in the training and the test rows. A column is read without decimal points if all of its numbers are whole in every
source, and a source with decimal points has missing values. Other columns stay as they are: 2.0 can be a measurement.

A column with only the texts True and False, in any case, has truth values. JSON and Parquet have them as such.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from toolkit.data.cells import TRUTH, is_missing, is_whole_text
from toolkit.data.json_stream import Row


@dataclass(slots=True)
class Numbers:
    """What a column has in one source.

    Attributes:
        whole: number of whole numbers with a decimal point.
        truth: number of texts that are True or False.
        missing: number of missing values.
        has_integers: whether it has integers.
        has_truth_values: whether it has truth values that are no texts.
        other: whether it has any other value.
    """

    whole: int = 0
    truth: int = 0
    missing: int = 0
    has_integers: bool = False
    has_truth_values: bool = False
    other: bool = False


class NumberBuilder:
    """Counts the values of columns row by row. A column of other texts is left after its first text."""

    def __init__(self, columns: Iterable[str]) -> None:
        self._found = {column: Numbers() for column in columns}
        self._open = list(self._found)

    def add(self, row: Row) -> None:
        """Count the values of one row."""
        is_closed = False
        for column in self._open:
            found, value = self._found[column], row.get(column)
            if is_missing(value):
                found.missing += 1
            elif isinstance(value, str):
                _count_text(found, value.strip())
            elif isinstance(value, bool):
                found.has_truth_values = True
            elif isinstance(value, int):
                found.has_integers = True
            elif isinstance(value, float) and value.is_integer():
                found.whole += 1
            else:
                found.other = True
            is_closed |= found.other
        if is_closed:
            self._open = [column for column in self._open if not self._found[column].other]

    def done(self) -> dict[str, Numbers]:
        """Return column -> counts, without columns that have only missing values."""
        return {column: found for column, found in self._found.items() if found != Numbers(missing=found.missing)}


def _count_text(found: Numbers, text: str) -> None:
    if is_whole_text(text):
        found.whole += 1
    elif text in TRUTH:
        found.truth += 1
    elif text.removeprefix("-").isdecimal():
        found.has_integers = True
    else:
        found.other = True


def whole_columns(sources: Iterable[Mapping[str, Numbers]]) -> tuple[str, ...]:
    """Return the columns whose whole numbers are read without decimal points, or whose truth values are read as such.

    >>> whole_columns([{"count": Numbers(whole=2, missing=1)}, {"count": Numbers(whole=5)}])
    ('count',)
    >>> whole_columns([{"count": Numbers(whole=2, missing=1)}, {"count": Numbers(whole=1, other=True)}])
    ()
    """
    found: dict[str, list[Numbers]] = {}
    for source in sources:
        for column, numbers in source.items():
            found.setdefault(column, []).append(numbers)
    return tuple(column for column, each in found.items() if _are_whole(each) or _are_truth_values(each))


def _are_whole(each: Iterable[Numbers]) -> bool:
    each = list(each)
    if any(one.other or one.truth or one.has_truth_values for one in each):
        return False
    return any(one.whole and one.missing for one in each)


def _are_truth_values(each: Iterable[Numbers]) -> bool:
    each = list(each)
    return any(one.truth for one in each) and not any(one.other or one.whole or one.has_integers for one in each)
