"""Findings of a plan: problems that prevent a run from working, and warnings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from toolkit.errors import Problem, ToolkitError


@dataclass(frozen=True, slots=True)
class PlanFinding:
    """One problem or warning.

    Attributes:
        details: Code, rule, place, value and remedy. The place is a recipe key, a folder, a row or an image.
        problem: Whether the run cannot work, according to the plan. False: a warning.
        certain: Whether the finding is known, not estimated. `toolkit run` aborts on it.
    """

    details: Problem
    problem: bool = True
    certain: bool = True

    @property
    def code(self) -> str:
        """Return the stable identifier."""
        return self.details.code

    @property
    def place(self) -> str:
        """Return the key, folder, row or image that the finding is about."""
        return self.details.place

    def __str__(self) -> str:
        return str(self.details)

    def to_json(self) -> dict[str, object]:
        """Return code, place, value, rule and remedy, and for a problem whether it is certain."""
        return {**self.details.to_json(), **({"certain": self.certain} if self.problem else {})}


class WithFindings:
    """Part that both kinds of plans have in common: their findings, by severity.

    A subclass is a dataclass that has the field ``findings``.
    """

    __slots__ = ()
    findings: Sequence[PlanFinding]

    @property
    def problems(self) -> list[PlanFinding]:
        """Return the findings that prevent the run."""
        return [finding for finding in self.findings if finding.problem]

    @property
    def certain(self) -> list[PlanFinding]:
        """Return the problems that are not estimates. `toolkit run` aborts on them."""
        return [finding for finding in self.problems if finding.certain]

    @property
    def warnings(self) -> list[PlanFinding]:
        """Return the findings that do not prevent the run."""
        return [finding for finding in self.findings if not finding.problem]

    def findings_json(self) -> dict[str, object]:
        """Return the entries ``ok``, ``problems`` and ``warnings`` of plan.json."""
        return {
            "ok": not self.problems,
            "problems": [finding.to_json() for finding in self.problems],
            "warnings": [finding.to_json() for finding in self.warnings],
        }


def warning(details: Problem) -> PlanFinding:
    """Return a finding that does not prevent the run."""
    return PlanFinding(details, problem=False, certain=False)


def from_error(error: ToolkitError, place: str, *, certain: bool = True) -> PlanFinding:
    """Return an error as a finding. It keeps its code, and gets ``place`` if it has none."""
    return PlanFinding(replace(error.problem, place=error.place or place), certain=certain)
