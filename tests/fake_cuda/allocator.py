"""torch's caching allocator, replayed on a log of allocations and releases.

The rules are those of ``c10/cuda/CUDACachingAllocator.cpp`` of torch 2.10 with default settings. Sizes are rounded up
to 512 bytes. Requests of at most 1 MiB use the small pool, which has segments of 2 MiB. Larger requests take the best
fit of the large pool, or a new segment of 20 MiB. From 10 MiB on, the new segment has the size of the request, rounded
up to 2 MiB. A block is split if enough of it is left, and released blocks merge with their neighbours. With
``expandable_segments`` each pool is one segment that grows by pages.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

KIB, MIB = 2**10, 2**20
UNIT = 512
SMALL = MIB
"""Requests of at most this size go to the small pool."""
SMALL_SEGMENT, LARGE_SEGMENT = 2 * MIB, 20 * MIB
OWN_SEGMENT = 10 * MIB
"""Requests of at least this size get a segment of their own."""
SEGMENT_UNIT = 2 * MIB


@dataclass(frozen=True, slots=True)
class Event:
    """A storage of ``size`` bytes that is allocated, or released (``size`` 0), under the number ``block``."""

    block: int
    size: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Peaks of a replay in bytes: reserved from the GPU, and allocated to tensors."""

    reserved: int
    allocated: int


@dataclass(slots=True)
class _Block:
    """A piece of a segment, linked to its neighbours there."""

    segment: int
    offset: int
    size: int
    free: bool = False
    before: "_Block | None" = None
    after: "_Block | None" = None


@dataclass(slots=True)
class _Pool:
    """Free blocks of one pool, smallest first."""

    small: bool
    free: list[tuple[int, int, int]] = field(default_factory=list)
    found: dict[tuple[int, int, int], _Block] = field(default_factory=dict)
    last: _Block | None = None
    """The block at the end of the pool's expandable segment."""

    def put(self, block: _Block) -> None:
        key = (block.size, block.segment, block.offset)
        block.free = True
        insort(self.free, key)
        self.found[key] = block

    def take(self, block: _Block) -> None:
        key = (block.size, block.segment, block.offset)
        block.free = False
        del self.free[bisect_left(self.free, key)]
        del self.found[key]

    def best(self, size: int) -> _Block | None:
        at = bisect_left(self.free, (size, -1, -1))
        return None if at == len(self.free) else self.found[self.free[at]]


def replay(events: Iterable[Event], *, expandable: bool = False) -> Usage:
    """Return the peaks that torch's allocator would report for a log.

    Args:
        events: allocations and releases in their order. A release of an unknown block is ignored.
        expandable: replay with ``expandable_segments:True``.
    """
    allocator = Allocator(expandable=expandable)
    for event in events:
        allocator.apply(event)
    return Usage(allocator.most_reserved, allocator.most_allocated)


class Allocator:
    """The state of a replay. ``reserved`` and ``allocated`` are bytes now, ``most_*`` their peaks."""

    def __init__(self, *, expandable: bool = False) -> None:
        self.expandable = expandable
        self.reserved = self.allocated = self.most_reserved = self.most_allocated = 0
        self._small, self._large = _Pool(small=True), _Pool(small=False)
        self._held: dict[int, tuple[_Block, int]] = {}
        self._segments = 0

    def apply(self, event: Event) -> None:
        """Allocate or release the event's block."""
        if event.size:
            self._allocate(event.block, max(UNIT, -(-event.size // UNIT) * UNIT))
        else:
            self._release(event.block)

    def _allocate(self, number: int, size: int) -> None:
        pool = self._small if size <= SMALL else self._large
        block = pool.best(size)
        if block is None:
            block = self._extend(pool, size) if self.expandable else self._segment(pool, size)
        else:
            pool.take(block)
        self._split(pool, block, size)
        self._held[number] = (block, size)
        self.allocated += size
        self.most_allocated = max(self.most_allocated, self.allocated)
        self.most_reserved = max(self.most_reserved, self.reserved)

    def _segment(self, pool: _Pool, size: int) -> _Block:
        if pool.small:
            whole = SMALL_SEGMENT
        else:
            whole = LARGE_SEGMENT if size < OWN_SEGMENT else -(-size // SEGMENT_UNIT) * SEGMENT_UNIT
        self._segments += 1
        self.reserved += whole
        return _Block(self._segments, 0, whole)

    def _extend(self, pool: _Pool, size: int) -> _Block:
        """Map further pages behind the pool's segment. A free block at its end becomes part of the new one."""
        page = SMALL_SEGMENT if pool.small else LARGE_SEGMENT
        end = pool.last
        if end is not None and end.free:
            pool.take(end)
            more = -(-(size - end.size) // page) * page
            end.size += more
            self.reserved += more
            return end
        more = -(-size // page) * page
        self.reserved += more
        start = 0 if end is None else end.offset + end.size
        block = _Block(0 if pool.small else 1, start, more, before=end)
        if end is not None:
            end.after = block
        pool.last = block
        return block

    def _split(self, pool: _Pool, block: _Block, size: int) -> None:
        rest = block.size - size
        if rest < UNIT or not (pool.small or self.expandable or rest > SMALL):
            return
        left = _Block(block.segment, block.offset + size, rest, before=block, after=block.after)
        if block.after is not None:
            block.after.before = left
        block.size, block.after = size, left
        if pool.last is block:
            pool.last = left
        pool.put(left)

    def _release(self, number: int) -> None:
        if number not in self._held:
            return
        block, size = self._held.pop(number)
        self.allocated -= size
        pool = self._small if size <= SMALL else self._large
        after = block.after
        if after is not None and after.free:
            pool.take(after)
            self._absorb(pool, block, after)
        before = block.before
        if before is not None and before.free:
            pool.take(before)
            self._absorb(pool, before, block)
            block = before
        pool.put(block)

    def _absorb(self, pool: _Pool, block: _Block, after: _Block) -> None:
        block.size += after.size
        block.after = after.after
        if after.after is not None:
            after.after.before = block
        if pool.last is after:
            pool.last = block
