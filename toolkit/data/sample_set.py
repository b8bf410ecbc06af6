"""Samples of one split, read on access, and the draws of a balanced split."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from random import Random
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from toolkit.data.cells import with_whole_numbers
from toolkit.data.episodes import Links
from toolkit.data.image_columns import count_numbered
from toolkit.data.index import RowIndex
from toolkit.data.placeholders import place_images
from toolkit.data.preferences import with_preference
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin, Task
from toolkit.errors import RowProblem


class SampleSet(Sequence[Sample]):
    """A subset of an index as samples. A slice is also a SampleSet. Picklable, and stores no row."""

    def __init__(
        self, task: Task, table: RowIndex, origin: RowOrigin, rows: NDArray[np.int64], links: Links | None = None
    ) -> None:
        self.task, self.table, self.origin, self.rows, self.links = task, table, origin, rows, links

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
        return f"SampleSet({self.task.name}: {len(self):,} of {len(self.table):,} rows of {self.table.source})"

    def read(self, number: int) -> Sample:
        """Return the sample of this row of the index, which need not be in this set.

        Raises:
            RowProblem: The row is unusable.
        """
        name, row = self.table[number]
        place = self.place(number)
        try:
            linked = row if self.links is None else self.links.put(self.table, number, row)
            sample = self.task.read(name, with_whole_numbers(linked, self.origin.whole), self.origin)
            placed = place_images(self.task, sample, self.origin.context, count_numbered(row, self.origin))
            placed = with_preference(self.task, placed, row, self.origin.preference)
        except RowProblem as problem:
            raise problem.at(place) from None
        return replace(placed, place=place)

    def place(self, number: int) -> str:
        """Return the file and the number of this row of the index, such as ``data/train.json, row 12``."""
        return f"{self.table.source}, {self.table.place(number)}"

    def with_settings(self, settings: Any) -> "SampleSet":
        """Return the same rows, read with other settings of the task."""
        return SampleSet(self.task, self.table, replace(self.origin, settings=settings), self.rows, self.links)

    def take(self, rows: NDArray[np.int64]) -> "SampleSet":
        """Return the samples of these rows of the index."""
        return SampleSet(self.task, self.table, self.origin, rows, self.links)


def limit(rows: NDArray[np.int64], maximum: int | None, seed: int, name: str) -> NDArray[np.int64]:
    """Return at most ``maximum`` of the rows, drawn by the seed, in ascending order. Deterministic on every machine."""
    if maximum is None or maximum >= len(rows):
        return rows
    return rows[sorted(Random(f"{seed}/{name}").sample(range(len(rows)), maximum))]


def balance(
    samples: SampleSet, stratum: Callable[[Sample], str], seed: int
) -> tuple[SampleSet, dict[str, tuple[int, int]]]:
    """Return the rows to train on, and class -> (rows, draws), most frequent class first.

    The draws of a class cycle through its groups (lesions, patients), and within a group through its rows. A lesion
    with six images thus counts as much as one with a single image. The seed decides which come first. The result is the
    same on every machine.
    """
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, sample in enumerate(samples):
        groups[stratum(sample)][sample.group].append(position)
    rows = {name: sum(map(len, members.values())) for name, members in groups.items()}
    order = sorted(groups, key=lambda name: (-rows[name], name))
    fractions = Counter(islice(cycle(order), len(samples)))
    drawn = [islice(_draws(groups[name], Random(f"{seed}/balance/{name}")), fractions[name]) for name in order]
    positions = np.array([position for some in drawn for position in some], np.int64)
    return samples.take(samples.rows[positions]), {name: (rows[name], fractions[name]) for name in order}


def _draws(groups: dict[str, list[int]], random: Random) -> Iterator[int]:
    """Yield the rows of the class, group after group, without end."""
    names: Sequence[str] = sorted(groups)
    names = random.sample(names, len(names))
    turns = {name: cycle(random.sample(groups[name], len(groups[name]))) for name in names}
    for name in cycle(names):
        yield next(turns[name])
