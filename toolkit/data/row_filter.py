"""Rows chosen by the values of their columns (``data.filter``)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType

from toolkit.data.groups import is_identifying
from toolkit.data.json_stream import Row
from toolkit.errors import DataError
from toolkit.identifiers import described, shown_cell

Value = str | int | float | bool
Filter = Mapping[str, Value | Sequence[Value]]
"""Column -> one value, or the values of which a row must have one."""

NO_FILTER: Filter = MappingProxyType({})

MAX_VALUES = 20
"""Values of a column that are kept for an error message."""


class RowFilter:
    """Keeps the rows that have one of the values in each column, and counts them.

    A value must be equal and of the same kind: the text "1" is not the number 1. All cells of a CSV are texts.
    """

    def __init__(self, wanted: Filter) -> None:
        self._wanted = {name: tuple(one) if isinstance(one, list | tuple) else (one,) for name, one in wanted.items()}
        self._keys = {name: frozenset(map(repr, values)) for name, values in self._wanted.items()}
        self._seen: dict[str, Counter[str]] = {name: Counter() for name in wanted}
        self._columns: dict[str, None] = {}
        self._rows = self._kept = 0

    @property
    def description(self) -> str:
        """Return the counts, such as ``4,919 of 9,835 rows have q_lang = en``. Empty without a filter."""
        if not self._wanted:
            return ""
        rules = (f"{name} = {' or '.join(map(str, values))}" for name, values in self._wanted.items())
        return f"{self._kept:,} of {self._rows:,} rows have {' and '.join(rules)}"

    def keeps(self, row: Row) -> bool:
        """Return whether the row is kept, and count it."""
        if not self._wanted:
            return True
        self._rows += 1
        found = [self._matches(name, row) for name in self._wanted]
        if len(self._columns) < MAX_VALUES:
            self._columns |= dict.fromkeys(row)
        self._kept += all(found)
        return all(found)

    @property
    def missing(self) -> list[str]:
        """Return the values that no row has, as ``column = value``."""
        pairs = ((name, value) for name, values in self._wanted.items() for value in values)
        return [f"{name} = {value}" for name, value in pairs if self._rows and repr(value) not in self._seen[name]]

    def check(self, source: str) -> None:
        """Check that each column exists, and that at least one row has one of its values.

        Raises:
            DataError: It is not, which shows the columns or values that exist.
        """
        for name, values in self._wanted.items():
            seen, place = self._seen[name], f"{source}: data.filter.{name}"
            if self._rows and not seen:
                close = get_close_matches(name, self._columns, n=1)
                known = ", ".join(list(self._columns)[:MAX_VALUES])
                remedy = f'Did you mean "{close[0]}"?' if close else f"Choose one of: {known[:600]}."
                rule = "the rows must have the column of the filter"
                raise DataError("data.filter_column_missing", rule, place=place, value=name, remedy=remedy)
            if self._rows and not any(repr(one) in seen for one in values):
                known = ", ".join(_shown(name, one) for one, _ in seen.most_common(MAX_VALUES))
                remedy = f"Choose from the values of the column: {known[:600]}."
                if all(one.startswith(("[", "{")) for one in seen):
                    has = f"This one has lists or objects: {known[:200]}."
                    remedy = f"Name a column of texts, numbers or truth values. {has}"
                rule = "at least one row must have a value of the filter"
                raise DataError("data.filter_value_missing", rule, place=place, value=values[0], remedy=remedy)

    def _matches(self, name: str, row: Row) -> bool:
        if name not in row:
            return False
        # The repr distinguishes "1", 1 and true, as a recipe does.
        key, seen, wanted = repr(row[name]), self._seen[name], self._keys[name]
        if key in seen or key in wanted or len(seen) < MAX_VALUES:
            seen[key] += 1
        return key in wanted


def _shown(column: str, key: str) -> str:
    """Return the repr of a value as a message may show it. A column about patients has no values to show."""
    text = key.strip("'\"")
    return (
        str(described(text))
        if is_identifying(column)
        else key[:40]
        if shown_cell(text) == text
        else str(described(text))
    )
