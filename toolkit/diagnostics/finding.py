"""One thing that the doctor looked at: its state, what was found, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

State = Literal["good", "warning", "problem"]
"""good: as it should be, or not needed. warning: slower, smaller, or not tried. problem: something fails."""

STATES: tuple[State, ...] = ("good", "warning", "problem")


@dataclass(frozen=True, slots=True)
class Finding:
    """``code`` is the stable identifier of what was found. ``remedy`` is empty if there is nothing to do."""

    code: str
    name: str
    state: State
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        """A warning or a problem without a remedy helps nobody."""
        if self.state != "good" and not self.remedy:
            raise ValueError(f"{self.name}: a {self.state} needs a remedy")


def worse(one: State, other: State) -> State:
    """The worse of two states."""
    return max(one, other, key=STATES.index)


def joined(first: Finding, second: Finding) -> Finding:
    """Return two findings on one thing as one of the first's name, with the code of the worse and both remedies."""
    code = first.code if worse(first.state, second.state) == first.state else second.code
    return Finding(
        code,
        first.name,
        worse(first.state, second.state),
        "; ".join(filter(None, (first.found, second.found))),
        " ".join(filter(None, (first.remedy, second.remedy))),
    )
