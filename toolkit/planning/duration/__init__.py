"""How long a stage takes: an estimate from FLOPs, bytes moved and kernel launches."""

from toolkit.planning.duration.gpus import COMMON, GPUS, GpuFigures, figures_of, gpus_of
from toolkit.planning.duration.stages import ASSUMPTIONS, Range, StageTime, mean_setting, stage_time, stage_times

__all__ = [
    "ASSUMPTIONS",
    "COMMON",
    "GPUS",
    "GpuFigures",
    "Range",
    "StageTime",
    "figures_of",
    "gpus_of",
    "mean_setting",
    "stage_time",
    "stage_times",
]
