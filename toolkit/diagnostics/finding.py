"""Findings of `toolkit doctor`."""

from dataclasses import dataclass
from typing import Literal

State = Literal["good", "warning", "problem"]
"""good: works, or is not needed. warning: slower, smaller, or not tested. problem: something fails."""

STATES: tuple[State, ...] = ("good", "warning", "problem")


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """One check. ``code`` is the stable identifier of its result. ``remedy`` is empty if there is nothing to do."""

    code: str
    name: str
    state: State
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        """Check that a warning or a problem has a remedy."""
        if self.state != "good" and not self.remedy:
            raise ValueError(f"{self.name}: a {self.state} needs a remedy")


def merge_findings(first: DoctorFinding, second: DoctorFinding) -> DoctorFinding:
    """Return two findings as one, with the name of the first, the code of the worse, and both remedies."""
    worse = max(first, second, key=lambda finding: STATES.index(finding.state))
    found = "; ".join(filter(None, (first.found, second.found)))
    return DoctorFinding(
        worse.code, first.name, worse.state, found, " ".join(filter(None, (first.remedy, second.remedy)))
    )
