"""Usage of runs: time, GPU memory, energy and FLOPs, recorded during the run and read for reports."""

from toolkit.runfolder.usage.counters import Counts, ParameterCount, count, counts, note_unmeasured
from toolkit.runfolder.usage.machine import begin_peak, gpu_peaks
from toolkit.runfolder.usage.measure import Usage, total
from toolkit.runfolder.usage.recorder import Recorder, recording
from toolkit.runfolder.usage.records import (
    HOUR,
    UNFINISHED,
    UNKNOWN,
    ComputeRecord,
    ComputeSummary,
    Session,
    Stage,
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
    "compute_line",
    "count",
    "counts",
    "energy",
    "figure",
    "gpu_peaks",
    "note_unmeasured",
    "read_compute",
    "recording",
    "summarise_compute",
    "total",
]
