"""The figures of the compute report as plain numbers; None is not measured."""

from typing import Any

from toolkit.runfolder.usage import HOUR, Usage


def figures(used: Usage) -> dict[str, Any]:
    """Hours, peaks in bytes, kWh, kg, FLOPs, and the counts that are not 0."""
    counts = used.counts
    return {
        "wall_hours": used.wall / HOUR,
        "cpu_hours": used.cpu / HOUR,
        "gpu_hours": used.gpu / HOUR,
        "peak_memory_bytes": used.memory,
        "peak_gpu_memory_bytes": used.gpu_memory,
        "energy_kwh": used.energy,
        "energy_hours": used.energy_wall / HOUR,
        "co2_kg": used.co2,
        "co2_of_kwh": used.co2_energy if used.co2 is not None else None,
        "flops_training_formula": counts.training or None,
        "flops_training_counter": counts.counter_training,
        "flops_inference_formula": counts.inference or None,
        "counts": counts.to_json(),
    }


def per_thousand(used: Usage) -> dict[str, Any] | None:
    """What 1,000 answers cost at the rate of ``used``; None where nothing was answered."""
    if not used.counts.answers:
        return None
    times = 1000 / used.counts.answers
    return {
        "answers": used.counts.answers,
        "wall_hours": used.wall / HOUR * times,
        "cpu_hours": used.cpu / HOUR * times,
        "gpu_hours": used.gpu / HOUR * times,
        # What was measured for a part of the time cannot stand for all of it.
        "energy_kwh": used.energy * times if used.energy is not None and _covered(used) else None,
        "flops_formula": used.counts.inference * times or None,
    }


def _covered(used: Usage) -> bool:
    return used.energy_wall > 0.99 * used.wall


def shares(used: Usage, whole: Usage) -> dict[str, float | None]:
    """The part that ``used`` has of the wall, CPU and GPU time of ``whole``; None where that is 0."""
    names = ("wall", "cpu", "gpu")
    return {name: getattr(used, name) / getattr(whole, name) if getattr(whole, name) else None for name in names}
