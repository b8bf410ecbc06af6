"""What runs use: recorded while they work, read again for reports."""

from toolkit.compute.counts import Counts, count, counts, note_unseen
from toolkit.compute.flops import Weights
from toolkit.compute.machine import begin_peak, gpu_peaks
from toolkit.compute.reading import UNFINISHED, ComputeRecord, Stage, Start, read_compute
from toolkit.compute.recorder import Recorder, recording
from toolkit.compute.summary import HOUR, UNKNOWN, compute_line, energy, figure, summarise_compute
from toolkit.compute.usage import Usage, total

__all__ = [
    "HOUR",
    "UNFINISHED",
    "UNKNOWN",
    "ComputeRecord",
    "Counts",
    "Recorder",
    "Stage",
    "Start",
    "Usage",
    "Weights",
    "begin_peak",
    "compute_line",
    "count",
    "counts",
    "energy",
    "figure",
    "gpu_peaks",
    "note_unseen",
    "read_compute",
    "recording",
    "summarise_compute",
    "total",
]
