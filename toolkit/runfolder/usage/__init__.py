"""Usage of runs: time, GPU memory, energy and FLOPs, recorded during the run and read for reports."""

from toolkit.runfolder.usage.counters import (
    Counts,
    ParameterCount,
    Usage,
    bypasses,
    count,
    counts,
    note_bypass,
    note_unmeasured,
    total,
)
from toolkit.runfolder.usage.machine import begin_peak, gpu_peaks
from toolkit.runfolder.usage.recorder import Recorder, recording
from toolkit.runfolder.usage.records import (
    HOUR,
    UNFINISHED,
    UNKNOWN,
    ComputeRecord,
    ComputeSummary,
    Session,
    Stage,
    bypassed_savings,
    compute_line,
    energy,
    figure,
    read_compute,
    summarise_compute,
)

__all__ = [
    "HOUR",
    "UNFINISHED",
    "UNKNOWN",
    "ComputeRecord",
    "ComputeSummary",
    "Counts",
    "ParameterCount",
    "Recorder",
    "Session",
    "Stage",
    "Usage",
    "begin_peak",
    "bypassed_savings",
    "bypasses",
    "compute_line",
    "count",
    "counts",
    "energy",
    "figure",
    "gpu_peaks",
    "note_bypass",
    "note_unmeasured",
    "read_compute",
    "recording",
    "summarise_compute",
    "total",
]
