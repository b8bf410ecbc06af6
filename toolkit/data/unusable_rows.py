"""Unusable rows, counted by reason with a few examples of each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.errors import Problem

MAX_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Dropped:
    """Unusable rows of one source with the same reason. ``examples`` has at most five of them."""

    source: str
    reason: str
    count: int
    examples: tuple[str, ...]
    code: str
    """Stable identifier of the reason, such as ``tasks.mcq.answer_not_an_option``."""

    def notice(self, verb: str = "") -> Problem:
        """Return the warning about these rows. ``verb`` says what happens to them, such as ``left out``."""
        rows = f"{self.count:,} {'row' if self.count == 1 else 'rows'}{f' {verb}' if verb else ''}"
        rule = f"{rows}: {self.reason} (for example {'; '.join(self.examples)})"
        return Problem(self.code, rule, self.source)

    def __str__(self) -> str:
        return str(self.notice())


class Tally:
    """Counts reasons, in order of first occurrence."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._examples: dict[tuple[str, str], list[str]] = {}

    def add(self, reason: str, example: str, code: str) -> None:
        """Count one row or file with the code and the wording of its reason."""
        key = (code, reason)
        if key not in self._counts:
            self._counts[key], self._examples[key] = 0, []
        self._counts[key] += 1
        if len(self._examples[key]) < MAX_EXAMPLES:
            self._examples[key].append(example)

    def of(self, source: str) -> tuple[Dropped, ...]:
        """Return the counts, most frequent reason first."""
        found = (
            Dropped(source, reason, count, tuple(self._examples[code, reason]), code)
            for (code, reason), count in self._counts.items()
        )
        return tuple(sorted(found, key=lambda dropped: -dropped.count))


def stored_dropped(stored: Iterable[Mapping[str, Any]]) -> tuple[Dropped, ...]:
    """Return the objects from the JSON of their ``dataclasses.asdict``."""
    return tuple(Dropped(**{**one, "examples": tuple(one["examples"])}) for one in stored)


def total(dropped: Iterable[Dropped]) -> int:
    """Return the total number of rows."""
    return sum(one.count for one in dropped)
