"""Rows counted by reason, with a few examples of each: unusable rows, and usable rows with a warning."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.errors import NOTHING, Problem, RowProblem, shorten

MAX_EXAMPLES = 5
CORRECT = "Correct these rows, or name other columns in data.columns."
"""Remedy of a row problem that has none of its own."""
_TUPLES = ("examples", "values", "rows")
MAX_VALUE = 80
"""Maximum number of characters of a value that is shown."""


@dataclass(frozen=True, slots=True)
class RowCount:
    """Rows of one source, unusable for one reason or usable with one warning. ``examples``: at most five ids."""

    source: str
    reason: str
    count: int
    examples: tuple[str, ...]
    code: str
    """Stable identifier of the reason, such as ``tasks.mcq.answer_not_an_option``."""
    values: tuple[str, ...] = ()
    """The shortened value of each example, or an empty text. A model card must not have them."""
    remedy: str = ""
    """How to fix the rows."""
    rows: tuple[int, ...] = ()
    """Number of the row of each example in its file, from 0. Empty if the numbers are not those of a file."""

    @property
    def shown(self) -> tuple[str, ...]:
        """Return the examples with their row number and value: ``id (row 3): value``."""
        rows = [f"row {row}" for row in self.rows] or [""] * len(self.examples)
        values = self.values or ("",) * len(self.examples)
        return tuple(_example(*one) for one in zip(self.examples, rows, values, strict=True))

    def notice(self, verb: str = "") -> Problem:
        """Return the warning about these rows. ``verb`` says what happens to them, such as ``left out``."""
        rows = f"{self.count:,} {'row' if self.count == 1 else 'rows'}{f' {verb}' if verb else ''}"
        rule = f"{rows}: {self.reason} (for example {'; '.join(self.shown)})"
        return Problem(self.code, rule, self.source, remedy=self.remedy)

    def __str__(self) -> str:
        return str(self.notice())


def _example(name: str, row: str, value: str) -> str:
    place = row if row == f"row {name}" else f"{name} ({row})" if row else name
    return f"{place}: {value}" if value else place


@dataclass(slots=True)
class _Counted:
    """The rows with one reason so far."""

    remedy: str
    count: int = 0
    examples: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def counted(self, source: str, code: str, reason: str) -> RowCount:
        """Return the rows as a value."""
        examples, values, rows = tuple(self.examples), tuple(self.values), tuple(self.rows)
        return RowCount(source, reason, self.count, examples, code, values, self.remedy, rows)


class Tally:
    """Counts reasons, in order of first occurrence."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, str], _Counted] = {}

    def add(self, reason: str, example: str, code: str, value: object = NOTHING, remedy: str = "") -> None:
        """Count one row or file with the code and the wording of its reason."""
        counted = self._counted.get((code, reason))
        if counted is None:
            counted = self._counted[code, reason] = _Counted(remedy)
        counted.count += 1
        if len(counted.examples) < MAX_EXAMPLES:
            counted.examples.append(example)
            counted.values.append("" if value is NOTHING else shorten(value, MAX_VALUE))

    def add_problem(self, example: str, problem: RowProblem, row: int | None = None) -> None:
        """Count the row of a problem, with its number in the file if it is known."""
        self.add(problem.reason, example, problem.code, problem.problem.value, problem.remedy or CORRECT)
        counted = self._counted[problem.code, problem.reason]
        if row is not None and len(counted.rows) < len(counted.examples):
            counted.rows.append(row)

    def of(self, source: str) -> tuple[RowCount, ...]:
        """Return the counts, most frequent reason first."""
        found = (one.counted(source, code, reason) for (code, reason), one in self._counted.items())
        return tuple(sorted(found, key=lambda dropped: -dropped.count))


def stored_counts(stored: Iterable[Mapping[str, Any]]) -> tuple[RowCount, ...]:
    """Return the objects from the JSON of their ``dataclasses.asdict``."""
    return tuple(RowCount(**{**one, **{name: tuple(one[name]) for name in _TUPLES}}) for one in stored)


def total(dropped: Iterable[RowCount]) -> int:
    """Return the total number of rows."""
    return sum(one.count for one in dropped)
