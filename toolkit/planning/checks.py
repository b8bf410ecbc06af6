"""Checks of a plan: all problems and warnings, in the order in which they are printed."""

from collections.abc import Mapping

from toolkit.planning.disk import Disk, check_disk
from toolkit.planning.facts import Facts
from toolkit.planning.findings import PlanFinding
from toolkit.planning.machine_checks import MACHINE_CHECKS, check_gpu_memory
from toolkit.planning.memory import StageMemory
from toolkit.planning.model_checks import MODEL_CHECKS, check_export
from toolkit.planning.model_files import check_base
from toolkit.planning.plan_warnings import WARNINGS
from toolkit.planning.row_checks import ROW_CHECKS
from toolkit.planning.stages import Stage


def check_plan(facts: Facts, memory: Mapping[Stage, StageMemory], disk: Disk | None) -> list[PlanFinding]:
    """Return all problems and warnings of a planned run."""
    return [
        *(finding for check in (*ROW_CHECKS, *MACHINE_CHECKS, *MODEL_CHECKS) for finding in check(facts)),
        *check_base(facts.recipe, facts.base, facts.config),
        *check_export(facts),
        *facts.export_findings,
        *(check_disk(facts.recipe, disk) if disk else ()),
        *check_gpu_memory(memory, facts.gpu),
        *(finding for check in WARNINGS for finding in check(facts)),
    ]
