"""A run's use in a few figures and in one line."""

from pathlib import Path
from typing import Any

from toolkit.runfolder.usage.measure import Usage
from toolkit.runfolder.usage.records import ComputeRecord, read_compute

HOUR = 3600.0
UNKNOWN = "not measured"


def summarise_compute(file: Path) -> dict[str, Any] | None:
    """For results.json: hours, peaks in GB, kWh and kg, null where not measured; None: nothing was recorded."""
    record = read_compute(file)
    if not record.starts:
        return None
    used = record.used
    return {
        "starts": len(record.starts),
        "wall_hours": _rounded(used.wall / HOUR),
        "cpu_hours": _rounded(used.cpu / HOUR),
        "gpu_hours": _rounded(used.gpu / HOUR),
        "peak_memory_gb": None if used.memory is None else _rounded(used.memory / 1e9),
        "peak_gpu_memory_gb": None if used.gpu_memory is None else _rounded(used.gpu_memory / 1e9),
        "energy_kwh": used.energy,
        "energy_hours": _rounded(used.energy_wall / HOUR),
        "co2_kg": used.co2,
        "training_flops_formula": used.counts.training or None,
        "damaged_lines": record.damaged,
    }


def compute_line(file: Path) -> str | None:
    """One line for the end of a run; None: nothing was recorded."""
    record = read_compute(file)
    return describe(record) if record.starts else None


def describe(record: ComputeRecord) -> str:
    """Wall, CPU and GPU hours, peak memory, energy."""
    used = record.used
    parts = [f"{figure(used.wall / HOUR)} h wall", f"{figure(used.cpu / HOUR)} CPU h"]
    parts.append(f"{figure(used.gpu / HOUR)} GPU h" if used.gpu else "no GPU")
    if used.memory is not None:
        parts.append(f"{used.memory / 1e9:.1f} GB memory")
    if used.gpu_memory is not None:
        parts.append(f"{used.gpu_memory / 1e9:.1f} GB of a GPU")
    parts.append(f"energy {energy(used)}")
    return ", ".join(parts)


def energy(used: Usage) -> str:
    """kWh in words, with the share of the time that they cover where that is not all."""
    if used.energy is None:
        return UNKNOWN
    covered = used.energy_wall / used.wall if used.wall else 0.0
    part = "" if covered > 0.99 else f" (over {covered:.0%} of the time)"
    return f"{figure(used.energy)} kWh{part}"


def figure(value: float) -> str:
    """Three digits that count: 0.0123, 4.56, 789, 12,345."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
