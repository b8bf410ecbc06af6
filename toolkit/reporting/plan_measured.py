"""The section that compares the plan with what was measured: time, optimizer steps and GPU memory of each stage."""

from collections.abc import Mapping

from toolkit.evaluation.results import EVALUATE
from toolkit.reporting.blocks import Section, Table, Text
from toolkit.reporting.figures import NOTHING, number
from toolkit.reporting.finished_run import FinishedRun
from toolkit.runfolder.usage import HOUR, Usage, read_compute

MINUTE = 60


def plan_section(run: FinishedRun) -> Section | None:
    """Return planned and measured figures of each stage. None: nothing was measured."""
    used = read_compute(run.folder.compute_file).stages()
    if not used:
        return None
    try:
        return _section(run, used)
    except (KeyError, TypeError, ValueError, AttributeError):  # a plan is a file of the run, which can have any content
        text = "plan.json has values of other types than a plan, so it is not compared with what was measured."
        return Section("plan", "Plan and measurements", (Text(text, "warning"),))


def _section(run: FinishedRun, used: Mapping[str, Usage]) -> Section:
    planned = _planned(run)
    rows = []
    for name, usage in used.items():
        result = run.training.get(name)
        seconds = None if result is None else result.training.seconds_per_step.measured
        memory = run.gpu_memory.get(name)
        rows.append(
            (
                name,
                _range(planned, name, "hours", HOUR / MINUTE),
                number(usage.wall / MINUTE, 3),
                _range(planned, name, "seconds_per_step", 1),
                number(seconds, 3),
                _gigabytes(memory.estimated_gb if memory else None),
                _gigabytes(memory.measured_gb if memory else None),
            )
        )
    head = ("stage", "planned min", "measured min", "planned s/step", "measured s/step", "planned GB", "measured GB")
    about = "The plan has no times for this machine, because it has no GPU." if not planned else _about(run)
    return Section("plan", "Plan and measurements", (Text(about), Table.of(head, rows), *_unplanned(run)))


def _planned(run: FinishedRun) -> dict[str, dict[str, list[float]]]:
    """Return stage -> its estimates for the GPU of this machine. Empty: the plan has none."""
    times, gpu = run.plan.get("time") or {}, run.plan.get("gpu") or {}
    found = (times.get("gpus") or {}).get(times.get("here")) if gpu.get("here") else None
    return found or {}


def _range(planned: dict[str, dict[str, list[float]]], stage: str, key: str, times: float) -> str:
    found = planned.get(stage)
    # The plan has one entry for all evaluations, whose hours are their sum.
    if found is None or stage.startswith(EVALUATE):
        return NOTHING
    low, high = (value * times for value in found[key])
    return f"{number(low, 3)} to {number(high, 3)}"


def _gigabytes(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}"


def _about(run: FinishedRun) -> str:
    return f"Times are planned for {run.plan['time']['here']}. GPU memory is what torch reserves on one GPU."


def _unplanned(run: FinishedRun) -> list[Text]:
    """Return what the plan does not include."""
    assumptions = [str(one) for one in (run.plan.get("time") or {}).get("assumptions") or ()]
    return [Text(f"Assumptions of the plan: {'; '.join(assumptions)}.")] if assumptions and _planned(run) else []
