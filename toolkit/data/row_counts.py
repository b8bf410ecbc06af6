"""Rows counted by reason, with a few examples of each: unusable rows, and usable rows with a warning."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.errors import NOTHING, Problem, RowProblem, list_places, shorten
from toolkit.identifiers import shown_cell

MAX_EXAMPLES = 5
CORRECT = "Correct these rows, or name other columns in data.columns."
"""Remedy of a row problem that has none of its own."""
_TUPLES = ("examples", "values")
MAX_VALUE = 80
"""Maximum number of characters of a value that is shown."""


@dataclass(frozen=True, slots=True)
class RowCount:
    """Rows of one source, unusable for one reason or usable with one warning.

    Attributes:
        source: the file, folder or dataset.
        reason: the rule that the rows break, or the warning.
        count: number of these rows.
        examples: places of at most five of them, such as ``row 12``, never ids or paths, which can name patients.
        code: stable identifier of the reason, such as ``tasks.mcq.answer_not_an_option``.
        values: the shortened value of each example, or an empty text. A model card must not have them.
        remedy: how to fix the rows.
    """

    source: str
    reason: str
    count: int
    examples: tuple[str, ...]
    code: str
    values: tuple[str, ...] = ()
    remedy: str = ""

    @property
    def shown(self) -> tuple[str, ...]:
        """Return the examples with their values: ``row 3: value``. A value that all have is shown once, at the last."""
        values = self.values or ("",) * len(self.examples)
        if len(self.examples) > 1 and values[0] and len(set(values)) == 1:
            return (*self.examples[:-1], f"{self.examples[-1]}, each with {values[0]}")
        return tuple(
            f"{place}: {value}" if value else place for place, value in zip(self.examples, values, strict=True)
        )

    def notice(self, verb: str = "") -> Problem:
        """Return the warning about these rows. ``verb`` says what happens to them, such as ``left out``."""
        rows = f"{self.count:,} {'row' if self.count == 1 else 'rows'}{f' {verb}' if verb else ''}"
        rule = f"{rows}: {self.reason} (for example {list_places(self.shown)})"
        return Problem(self.code, rule, self.source, remedy=self.remedy)

    def __str__(self) -> str:
        return str(self.notice())


@dataclass(slots=True)
class _Counted:
    """The rows with one reason so far."""

    remedy: str
    count: int = 0
    examples: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)

    def counted(self, source: str, code: str, reason: str) -> RowCount:
        """Return the rows as a value."""
        return RowCount(source, reason, self.count, tuple(self.examples), code, tuple(self.values), self.remedy)


class Tally:
    """Counts reasons, in order of first occurrence."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, str], _Counted] = {}

    def add(self, reason: str, place: str, code: str, value: object = NOTHING, remedy: str = "") -> None:
        """Count one row or file at a place, with the code and the wording of its reason.

        The value is shown as ``shown_cell`` allows. A place is not checked: it must have no id and no path.
        """
        counted = self._counted.get((code, reason))
        if counted is None:
            counted = self._counted[code, reason] = _Counted(remedy)
        counted.count += 1
        if len(counted.examples) < MAX_EXAMPLES:
            counted.examples.append(place)
            counted.values.append("" if value is NOTHING else shorten(shown_cell(value), MAX_VALUE))

    def add_problem(self, place: str, problem: RowProblem, private: Collection[str] = ()) -> None:
        """Count the row of a problem. ``private`` has parts of names that its value must not have."""
        value = problem.cell if problem.cell is NOTHING else shown_cell(problem.cell, private)
        self.add(problem.reason, place, problem.code, value, problem.remedy or CORRECT)

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
