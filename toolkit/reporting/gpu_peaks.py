"""Compare the GPU memory that the plan estimated with the measured peak, by training stage."""

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.runfolder import TRAINING_STAGES, RunFolder
from toolkit.runfolder.usage import read_compute


@dataclass(frozen=True, slots=True)
class GpuPeak:
    """The memory that torch reserves on one GPU, in GB.

    Attributes:
        estimated_gb: estimate of the plan. None: the run was planned without a GPU, or has no plan.
        measured_gb: measured peak. None: no GPU was used.
    """

    estimated_gb: float | None
    measured_gb: float | None


def gpu_peaks(run: RunFolder) -> dict[str, GpuPeak]:
    """Return training stage -> its peak, for the training stages that have begun."""
    plan = run.plan()
    estimates = (plan.get("memory") or {}) if plan.get("gpu") else {}
    used = read_compute(run.compute_file).stages()
    found = {}
    for name in TRAINING_STAGES:
        if name in used:
            measured = used[name].gpu_memory
            found[name] = GpuPeak(
                estimated_gb=estimates[name]["reserved_gb"] if name in estimates else None,
                measured_gb=None if measured is None else round(measured / 1e9, 3),
            )
    return found


def describe_peaks(peaks: Mapping[str, GpuPeak]) -> str:
    """Return the peaks in one line, for the end of a run."""
    if all(one.measured_gb is None for one in peaks.values()):
        return "no GPU was used"
    return ", ".join(
        f"{name} {_figure(one.measured_gb)} (plan: {_figure(one.estimated_gb)})" for name, one in peaks.items()
    )


def _figure(gigabytes: float | None) -> str:
    return "not known" if gigabytes is None else f"{gigabytes:.1f} GB"
