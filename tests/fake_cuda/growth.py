"""Interpolation of the decode steps between the first and last traced ones, whose allocations grow linearly.

The KV cache is copied into a longer tensor at every step. Its old blocks are too small for the new ones, which is most
of what fragments a rollout, so the replay needs every step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.fake_cuda.allocator import Event
from tests.fake_cuda.log import Allocation

NEAR, FAR = ("near 0", "near 1", "near 2"), ("far 0", "far 1")
"""Phases of the decode steps that are traced: those after prefill, and the last ones."""
JUMP, END = "jump", "end"
"""Phases between the two, where the cache is made longer, and behind. Each begins with an allocation."""
NOT_REAL = (JUMP, *FAR, END)
ROLLOUT = ("prefill", *NEAR, *NOT_REAL)

Logged = Sequence[tuple[bool, Allocation]]


@dataclass(frozen=True, slots=True)
class Line:
    """One event of a step: an allocation of ``size`` bytes (or of a release, 0) that was the ``index``-th of the step
    ``back`` steps ago.
    """

    index: int
    back: int
    size: int


def with_every_step(logged: Logged, steps: int) -> list[Event]:
    """Return a stage's events for the allocator, with all ``steps`` decode steps of each rollout.

    The traced last steps are left out, because those that are made in their place include them.
    """
    events: list[Event] = []
    for part, rollout in _parts(logged):
        if not rollout:
            events += [Event(one.number, one.size if came else 0) for came, one in part]
            continue
        made = [event for step in grown(part, steps) for event in step]
        alive = {event.block for event in made if event.size} - {event.block for event in made if not event.size}
        real = [(came, one) for came, one in part if one.phase not in NOT_REAL]
        cut = next(index for index, (came, one) in enumerate(part) if came and one.phase == JUMP)
        before = sum(one.phase not in NOT_REAL for _, one in part[:cut])
        events += [Event(one.number, one.size if came else 0) for came, one in real[:before]]
        events += made + [Event(block, 0) for block in sorted(alive)]
        events += [Event(one.number, 0) for _, one in real[before:]]
    return events


def _parts(logged: Logged) -> Iterator[tuple[Logged, bool]]:
    """Split the log at the beginning and end of rollouts. Releases stay with the allocation before them."""
    part: list[tuple[bool, Allocation]] = []
    rollout = False
    for came, one in logged:
        if came and (one.phase in ROLLOUT) != rollout:
            if part:
                yield part, rollout
            part, rollout = [], not rollout
        part.append((came, one))
    if part:
        yield part, rollout


def grown(logged: Logged, steps: int) -> list[list[Event]]:
    """Return the events of the decode steps of one rollout from ``len(NEAR)`` to ``steps - 1``.

    Sizes are interpolated linearly between those of the last near step and of the last far step.

    Raises:
        ValueError: the two steps do not allocate in the same order.
    """
    first, last = _template(logged, *NEAR[-2:]), _template(logged, *FAR[-2:])
    if [(one.index, one.back, one.size > 0) for one in first] != [(one.index, one.back, one.size > 0) for one in last]:
        raise ValueError(f"{NEAR[-1]}, {FAR[-1]}: decode steps must allocate alike ({len(first)}, {len(last)} events)")
    before = [one.number for came, one in logged if came and one.phase == NEAR[-1]]
    start, span = len(NEAR) - 1, max(1, steps - len(NEAR))
    made: list[list[Event]] = []
    number = 0
    for step in range(len(NEAR), steps):
        own: list[int] = []
        events: list[Event] = []
        for small, large in zip(first, last, strict=True):
            if small.size:
                number -= 1
                own.append(number)
                events.append(Event(number, small.size + (large.size - small.size) * (step - start) // span))
            else:
                events.append(Event((before if small.back else own)[small.index], 0))
        before = own
        made.append(events)
    return made


def _template(logged: Logged, previous: str, phase: str) -> list[Line]:
    """Return what a step allocates and releases, of its own blocks and of those of the step before it.

    Releases belong to a step if they happen after its first allocation and before the next phase's.
    """
    place: dict[int, tuple[int, int]] = {}
    counts = {previous: 0, phase: 0}
    lines: list[Line] = []
    inside = False
    for came, one in logged:
        if came:
            inside = one.phase == phase
            if one.phase in counts:
                place[one.number] = (counts[one.phase], 0 if inside else 1)
                counts[one.phase] += 1
            if inside:
                lines.append(Line(*place[one.number], one.size))
        elif inside and one.number in place:
            lines.append(Line(*place[one.number], 0))
    return lines
