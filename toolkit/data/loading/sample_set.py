"""Samples of one split, read on access."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from toolkit.data import RowIndex
from toolkit.data.links import Links
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin
from toolkit.tasks import TASKS


class SampleSet(Sequence[Sample]):
    """A subset of an index as samples. A slice is also a SampleSet. Picklable, and stores no row."""

    def __init__(
        self, task: str, table: RowIndex, source: RowOrigin, rows: NDArray[np.int64], links: Links | None = None
    ) -> None:
        self.task, self.table, self.source, self.rows, self.links = task, table, source, rows, links

    @overload
    def __getitem__(self, number: int) -> Sample: ...
    @overload
    def __getitem__(self, number: slice) -> "SampleSet": ...
    def __getitem__(self, number: int | slice) -> "Sample | SampleSet":
        if isinstance(number, slice):
            return self.take(self.rows[number])
        return self.read(int(self.rows[number]))

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"SampleSet({self.task}: {len(self):,} of {len(self.table):,} rows of {self.table.source})"

    def read(self, number: int) -> Sample:
        """Return the sample of this row of the index, which need not be in this set.

        Raises:
            RowProblem: The row is unusable.
        """
        name, row = self.table[number]
        linked = row if self.links is None else self.links.put(self.table, number, row)
        return TASKS[self.task].read(name, linked, self.source)

    def with_settings(self, settings: Any) -> "SampleSet":
        """Return the same rows, read with other settings of the task."""
        return SampleSet(self.task, self.table, replace(self.source, settings=settings), self.rows, self.links)

    def take(self, rows: NDArray[np.int64]) -> "SampleSet":
        """Return the samples of these rows of the index."""
        return SampleSet(self.task, self.table, self.source, rows, self.links)


def limit(rows: NDArray[np.int64], maximum: int | None, seed: int, name: str) -> NDArray[np.int64]:
    """Return at most ``maximum`` of the rows, drawn by the seed, in ascending order. Deterministic on every machine."""
    if maximum is None or maximum >= len(rows):
        return rows
    return rows[sorted(Random(f"{seed}/{name}").sample(range(len(rows)), maximum))]
