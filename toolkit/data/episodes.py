"""Episodes: rows with an order, and the agent memory that is passed from one row to the next.

A row is otherwise read alone. A task with ordered rows (``Task.link``) reads all of them once. The resulting numbers
are stored beside the index, and a row is then read together with its previous row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.json_stream import Row
from toolkit.data.sample import Answer, Sample
from toolkit.scoring.statistics import EpisodePosition

if TYPE_CHECKING:  # the index needs formats, and formats need the cells of rows
    from toolkit.data.index import RowIndex
    from toolkit.data.task import RowOrigin


LINK = "(link)"
"""The key of the Link in a row that is read."""

FIRST, GAP, REPEATED = -1, -2, -3
"""Values of ``previous`` without a row: first row, missing previous row, or repeated position."""

Numbers = NDArray[np.int64]

Memory = Any
"""The task's own; its ``==`` compares content."""


@dataclass(frozen=True, slots=True)
class Link:
    """Position of one row: ``place`` of ``length``, counted from 1.

    ``previous`` is the previous row. If it is None, ``state`` (FIRST, GAP or REPEATED) says why.
    """

    previous: Row | None = None
    state: int = FIRST
    place: int = 1
    length: int = 1


@dataclass(frozen=True, slots=True)
class Links:
    """Links of all rows of a source. Each array has one value per row.

    Attributes:
        previous: Number of the previous row, or FIRST, GAP or REPEATED.
        places: Position in the sequence, from 1.
        lengths: Length of the sequence, including missing positions.
        chosen: Whether the recipe selects the row.
        notes: Sentences for the user.
    """

    previous: Numbers
    places: Numbers
    lengths: Numbers
    chosen: NDArray[np.bool_]
    notes: tuple[str, ...] = ()

    def put(self, index: "RowIndex", number: int, row: Row) -> Row:
        """Return the row with its Link. The previous row is read from the index."""
        before = int(self.previous[number])
        previous = index[before][1] if before >= 0 else None
        return {**row, LINK: Link(previous, min(before, 0), int(self.places[number]), int(self.lengths[number]))}


def link_of(row: Row) -> Link:
    """Return the row's Link. A row that was read alone is the first and only one."""
    found = row.get(LINK)
    return found if isinstance(found, Link) else Link()


@dataclass(frozen=True, slots=True)
class AgentMemoryFunctions:
    """Episodes of a task, and their agent memory. All functions are pure.

    Attributes:
        title: name of the score for completely correct episodes in tables, such as "whole tasks".
        position: Sample -> its position in its episode.
        shown: Sample -> whether its prompt shows any agent memory.
        held: Sample -> the agent memory of its prompt. Rows are read with the memory of the reference.
        start: Sample -> the agent memory before the first row of its episode.
        put: (Sample, agent memory) -> the Sample with this agent memory in its prompt.
        memory_of: (short-term memory, long-term memory) -> the agent memory, for callers of the Python API.
        advance: (agent memory, Answer) -> the agent memory for the next row.
        plain: agent memory -> JSON-compatible mapping with ``short_term`` and ``long_term``.
        place_columns: Sample -> the first columns of a table of predictions.
        value_columns: a reference, or the values of an answer -> its columns in such a table.
        baselines: label -> (Sample -> completion): further baselines that do not use the image, scored like a model.
        open_fields: the fields that a source of unlabelled rows must have.
        open_row: (row id, row with its Link, source) -> a Sample without a reference, with the agent memory of the
            start. Raises RowProblem.
    """

    title: str
    position: Callable[[Sample], EpisodePosition]
    shown: Callable[[Sample], bool]
    held: Callable[[Sample], Memory]
    start: Callable[[Sample], Memory]
    put: Callable[[Sample, Memory], Sample]
    memory_of: Callable[[Mapping[str, Any], Mapping[str, Any]], Memory]
    advance: Callable[[Memory, Answer], Memory]
    plain: Callable[[Memory], Mapping[str, Any]]
    place_columns: Callable[[Sample], Mapping[str, Any]]
    value_columns: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    baselines: Mapping[str, Callable[[Sample], str]]
    open_fields: frozenset[str]
    open_row: "Callable[[str, Row, RowOrigin], Sample]"
