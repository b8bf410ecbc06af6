"""What a row must know of another row of its source: the one before it, and where in its line it stands.

A row is read alone. A task whose rows follow each other (``Task.link``) looks at all of them once. The numbers that it
finds are kept beside the index, and a row is then read together with the one before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data import RowIndex

LINK = "(link)"
"""The key under which a row that is read has its Link."""

FIRST, GAP, REPEATED = -1, -2, -3
"""Instead of the number of the row before: there is none. It is missing. This place is an earlier row's."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Link:
    """Where one row stands: ``place`` of ``length``, counted from 1.

    ``previous`` is the row before it; None: there is none, and ``state`` (FIRST, GAP or REPEATED) says why.
    """

    previous: Mapping[str, Any] | None = None
    state: int = FIRST
    place: int = 1
    length: int = 1


@dataclass(frozen=True, slots=True)
class Links:
    """The links of all rows of a source, one value a row in each array.

    Attributes:
        previous: number of the row before, or FIRST, GAP or REPEATED.
        locations: place in the line, from 1.
        lengths: locations that the line has, with those that no row fills.
        chosen: whether the recipe asks for the row at all.
        notes: sentences for the user.
    """

    previous: Numbers
    places: Numbers
    lengths: Numbers
    chosen: NDArray[np.bool_]
    notes: tuple[str, ...] = ()

    def put(self, index: RowIndex, number: int, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the row with its Link. The row before is read from the index."""
        before = int(self.previous[number])
        previous = index[before][1] if before >= 0 else None
        return {**row, LINK: Link(previous, min(before, 0), int(self.places[number]), int(self.lengths[number]))}


def link_of(row: Mapping[str, Any]) -> Link:
    """Return the row's Link. A row that was read alone is the first and only one."""
    found = row.get(LINK)
    return found if isinstance(found, Link) else Link()
