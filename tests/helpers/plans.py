"""Synthetic X-rays to plan, and the findings of a plan."""

import json
from pathlib import Path
from typing import Any

from toolkit.planning import Plan, PlanFinding
from toolkit.recipe import SyntheticData
from toolkit.tasks.mcq.synthetic import write_chest


def write_xrays(folder: Path, *, train: int = 24, test: int = 8, size: int = 128) -> Path:
    """Write synthetic X-rays with their rows as files, and return the folder."""
    write_chest(folder, SyntheticData(kind="chest", train=train, test=test, size=size), 3407)
    return folder


def codes(plan: Plan) -> list[str]:
    """Return the codes of all findings."""
    return [finding.code for finding in plan.findings]


def one_of(plan: Plan, code: str) -> PlanFinding:
    """Return the only finding with this code."""
    (found,) = (finding for finding in plan.findings if finding.code == code)
    return found


def record_of(plan: Plan) -> Any:
    """Return the content of plan.json."""
    return json.loads(json.dumps(plan.to_json()))
