"""Parts of the text of a plan that both kinds of plans have."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.planning import Gpu
    from toolkit.planning.disk import Disk
    from toolkit.planning.duration import Range
    from toolkit.planning.memory import Moment

GIB = 2**30
SHOWN = 0.005 * GIB
"""Bytes from which a part of the GPU memory is shown."""
UNITS = ((172_800, 86_400, "days"), (5400, 3600, "h"), (120, 60, "min"), (0, 1, "s"))
"""Smallest number of seconds for a unit, seconds per unit, and its name."""
MEMORY_TITLE = "GPU memory: formulas checked against an allocation trace, not against a GPU"
TIME_TITLE = "time: an estimate from FLOPs, bytes and kernel launches"


@dataclass(frozen=True, slots=True)
class PlanText:
    """Text that depends on the kind of plan.

    Attributes:
        sections: title -> lines, in their order. A section without lines is not shown.
        work: the work of all stages in a few words.
        peaks: stage -> moment that needs the most GPU memory.
        durations: GPU -> stage -> duration.
    """

    sections: Mapping[str, Iterable[str]]
    work: str
    peaks: "Mapping[str, Moment]"
    durations: "Mapping[str, Mapping[str, Range]]"


def describe_parts(moment: "Moment", labels: Mapping[str, str]) -> str:
    """Return the parts of a moment in GiB, the largest first."""
    shown = sorted(((size, part) for part, size in moment.parts.items() if size >= SHOWN), reverse=True)
    return ", ".join(f"{labels[part]} {size / GIB:.2f}" for size, part in shown)


def describe_gpu(gpu: "Gpu | None") -> str:
    """Return the GPU that a plan is for."""
    if gpu is None:
        return "this machine has no CUDA device"
    return f"this plan's GPU: {gpu.name}, {gpu.memory / GIB:.1f} GiB"


def describe_durations(found: "Mapping[str, Range]") -> str:
    """Return the durations of stages and their sum."""
    parts = [f"{stage} {span(one.low, one.high)}" for stage, one in found.items()]
    whole = span(sum(one.low for one in found.values()), sum(one.high for one in found.values()))
    return f"{', '.join(parts)}, {whole} in all"


def span(low: float, high: float) -> str:
    """Return a range of seconds as text, in the unit that fits the upper end."""
    size, unit = next((size, unit) for least, size, unit in UNITS if high >= least)
    digits = [f"{value / size:.2g}" if value < 10 * size else f"{value / size:,.0f}" for value in (low, high)]
    return f"{digits[0]} to {digits[1]} {unit}"


def disk_lines(disk: "Disk | None") -> Iterator[str]:
    """Yield the parts of the run folder, their sum, and downloads."""
    if disk is None:
        return
    yield ", ".join(f"{part} {describe_bytes(size)}" for part, size in disk.parts.items())
    yield f"{describe_bytes(disk.needed)} at most, {disk.free / 1e9:.1f} GB free"
    for name, size in disk.downloads.items():
        yield f"download of {name}: {size / 1e9:.1f} GB into {disk.cache}"


def describe_bytes(size: int) -> str:
    """Return a size in GB, or in MB below 0.1 GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
