"""Links between rows of a source: the previous row, and the position of a row in its sequence.

A row is otherwise read alone. A task with ordered rows (``Task.link``) reads all of them once. The resulting numbers
are kept beside the index, and a row is then read together with its previous row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data import RowIndex

LINK = "(link)"
"""The key of the Link in a row that is read."""

FIRST, GAP, REPEATED = -1, -2, -3
"""Values of ``previous`` without a row: first row, missing previous row, or repeated position."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Link:
    """Position of one row: ``place`` of ``length``, counted from 1.

    ``previous`` is the previous row. If it is None, ``state`` (FIRST, GAP or REPEATED) says why.
    """

    previous: Mapping[str, Any] | None = None
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

    def put(self, index: RowIndex, number: int, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the row with its Link. The previous row is read from the index."""
        before = int(self.previous[number])
        previous = index[before][1] if before >= 0 else None
        return {**row, LINK: Link(previous, min(before, 0), int(self.places[number]), int(self.lengths[number]))}


def link_of(row: Mapping[str, Any]) -> Link:
    """Return the row's Link. A row that was read alone is the first and only one."""
    found = row.get(LINK)
    return found if isinstance(found, Link) else Link()
