"""The examination: every check in its order, and what it comes to."""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from toolkit import __version__
from toolkit.diagnostics.disk import check_folders
from toolkit.diagnostics.extras import check_extras
from toolkit.diagnostics.finding import Finding, State
from toolkit.diagnostics.gpu import ask_driver, check_driver, check_gpus
from toolkit.diagnostics.hub import asked_model, check_hub
from toolkit.diagnostics.inside import LOADS
from toolkit.diagnostics.libraries import check_libraries
from toolkit.diagnostics.machine import check_machine
from toolkit.diagnostics.probes import LIMIT, TOTAL, Outcome, run_probes
from toolkit.diagnostics.recipes import check_recipes
from toolkit.recipe import Recipe
from toolkit.runfolder import Progress, hide_secrets, silent


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found, in the order of looking, and how long it took."""

    findings: tuple[Finding, ...]
    seconds: float

    def count(self, state: State) -> int:
        """How many findings are in this state."""
        return sum(one.state == state for one in self.findings)

    def to_json(self) -> dict[str, Any]:
        """One object: toolkit (version), seconds, problems, warnings, and findings.

        Each finding has code (stable), name, state ("good", "warning", "problem"), found and remedy. All are text, and
        the remedy is empty if there is nothing to do.
        """
        return {
            "toolkit": __version__,
            "seconds": round(self.seconds, 1),
            "problems": self.count("problem"),
            "warnings": self.count("warning"),
            "findings": [asdict(one) for one in self.findings],
        }


def examine(
    recipe: Recipe | None = None, *, limit: float = LIMIT, total: float = TOTAL, progress: Progress = silent
) -> Examination:
    """Look at this machine; nothing heavy is loaded into this process, and nothing is changed.

    Args:
        recipe: whose model is looked for; None: MedGemma.
        limit: seconds for loading one library.
        total: seconds for loading all of them.
        progress: called as libraries have been loaded.
    """
    begun = time.monotonic()
    outcomes = run_probes(tuple(LOADS), model=asked_model(recipe), limit=limit, total=total, progress=progress)
    findings = [_without_secrets(one) for one in _findings(recipe, outcomes, os.environ)]
    gpu = bool(outcomes["torch"].facts.get("devices"))
    findings.append(check_recipes(recipe, findings, gpu))
    return Examination(tuple(findings), time.monotonic() - begun)


def _findings(
    recipe: Recipe | None, outcomes: Mapping[str, Outcome], environment: Mapping[str, str]
) -> Iterator[Finding]:
    driver = ask_driver()
    yield from check_machine()
    yield check_driver(driver)
    yield from check_gpus(outcomes["torch"], driver)
    yield from check_libraries(outcomes, gpu=bool(outcomes["torch"].facts.get("devices")))
    yield from check_extras(outcomes, environment)
    yield from check_hub(recipe, outcomes["hub"], environment)
    yield from check_folders(environment)


def _without_secrets(finding: Finding) -> Finding:
    return replace(finding, found=hide_secrets(finding.found), remedy=hide_secrets(finding.remedy))
