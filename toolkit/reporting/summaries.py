"""Figures and descriptions of runs for the compute report."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from toolkit.recipe import Dpo, Grpo, Recipe, Sft
from toolkit.runfolder.usage import HOUR, UNKNOWN, Session, Usage


def figures(used: Usage) -> dict[str, Any]:
    """Return hours, peaks in bytes, kWh, kg, FLOPs, and the counts that are not 0. None: not measured."""
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
    """Return the cost of 1,000 completions at the rate of ``used``. None: nothing was generated."""
    if not used.counts.answers:
        return None
    times = 1000 / used.counts.answers
    return {
        "answers": used.counts.answers,
        "wall_hours": used.wall / HOUR * times,
        "cpu_hours": used.cpu / HOUR * times,
        "gpu_hours": used.gpu / HOUR * times,
        # Energy that was measured for a part of the time does not represent all of it.
        "energy_kwh": used.energy * times if used.energy is not None and _covered(used) else None,
        "flops_formula": used.counts.inference * times or None,
    }


def _covered(used: Usage) -> bool:
    return used.energy_wall > 0.99 * used.wall


def fractions(used: Usage, whole: Usage) -> dict[str, float | None]:
    """Return the fractions of the wall, CPU and GPU time of ``whole``. None: that time is 0."""
    names = ("wall", "cpu", "gpu")
    return {name: getattr(used, name) / getattr(whole, name) if getattr(whole, name) else None for name in names}


def task_name(recipe: Recipe) -> str:
    """Return the task of a recipe, or "image generation"."""
    return recipe.task.name if recipe.imagegen is None else "image generation"


def model_name(recipe: Recipe | None) -> str | None:
    """Return the model with precision and tuning. None: the recipe cannot be read."""
    if recipe is None:
        return None
    if recipe.imagegen is not None:
        generator = recipe.imagegen.generator
        return f"{Path(generator.model).name}, {generator.precision}, LoRA r {generator.lora.r}"
    model = recipe.model
    name = model.name.rstrip("/").rpartition("/")[2] if model.name.startswith(("/", "./", "../", "~")) else model.name
    tuning = f"LoRA r {recipe.lora.r}" if model.tuning == "lora" else "full"
    return f"{name}, {model.precision}, {tuning}"


def training_of(recipe: Recipe | None) -> str | None:
    """Return the training stages with length, batch size and learning rate. None: none, or an unreadable recipe."""
    if recipe is None:
        return None
    if recipe.imagegen is not None:
        return ", ".join(recipe.imagegen.update.methods)
    parts = [_sft(recipe.sft)] if recipe.sft else []
    parts += [_dpo(recipe.dpo)] if recipe.dpo else []
    parts += [_grpo(recipe.grpo)] if recipe.grpo else []
    return "; ".join(parts) or None


def _sft(sft: Sft) -> str:
    return f"SFT {_length(sft)}, batch {sft.batch_size} x {sft.accumulation}, learning rate {sft.learning_rate:g}"


def _dpo(dpo: Dpo) -> str:
    batch = f"{dpo.batch_size} x {dpo.accumulation} pairs"
    return f"DPO {_length(dpo)}, {batch}, beta {dpo.beta:g}, learning rate {dpo.learning_rate:g}"


def _grpo(grpo: Grpo) -> str:
    batch = f"{grpo.prompts_per_step} prompts x {grpo.generations} completions"
    return f"GRPO {_length(grpo)}, {batch}, learning rate {grpo.learning_rate:g}"


def _length(section: Sft | Dpo | Grpo) -> str:
    if section.max_steps is not None:
        return f"{section.max_steps} steps"
    return f"{section.epochs:g} epoch{'' if section.epochs == 1 else 's'}"


TOO_SHORT = "not measured: the session ended before codecarbon started, or was killed"


def machines(sessions: Sequence[Session]) -> list[str]:
    """Return CPU, RAM, disk and GPUs of each kind of machine, with the number of its sessions."""
    return _counted(_machine(session) for session in sessions)


def energy_sources(sessions: Sequence[Session]) -> list[str]:
    """Return what was measured or estimated, the country of the CO2 figures, or why there are none."""
    return _counted(_accuracy(session) for session in sessions)


def versions_of(sessions: Sequence[Session]) -> list[str]:
    """Return each distinct set of versions of Python and libraries."""
    return _counted(
        ", ".join(f"{name} {version}" for name, version in session.versions.items()) for session in sessions
    )


def _machine(session: Session) -> str:
    facts = session.machine
    cores = f"{facts.get('cores', UNKNOWN)} cores"
    if facts.get("cores_allowed") not in (None, facts.get("cores")):
        cores += f" ({facts['cores_allowed']} allowed)"
    gpus = [f"{one['name']} ({one['memory_gb']} GB)" for one in facts.get("gpus", ())]
    used = ", ".join(f"{gpus.count(name) * session.processes} x {name}" for name in dict.fromkeys(gpus))
    parts = [str(facts.get("cpu", UNKNOWN)), cores, _size(facts.get("memory_gb"), "RAM")]
    parts += [_size(facts.get("disk_gb"), "disk"), f"GPUs used: {used or 'none'}"]
    if cuda := facts.get("cuda"):
        parts.append(f"CUDA {cuda}")
    if session.processes > 1:
        parts.append(f"{session.processes} processes")
    return ", ".join(parts)


def _size(value: object, what: str) -> str:
    return f"{what} {UNKNOWN}" if value is None else f"{value} GB {what}"


def _accuracy(session: Session) -> str:
    if session.energy:
        return f"{UNKNOWN}: {session.energy}"
    if problem := session.machine.get("energy_problem"):
        return f"{UNKNOWN}: {problem}"
    how = session.machine.get("energy")
    if session.used.energy is None or not how:
        return TOO_SHORT
    parts = [f"{name} {how[key]}" for name, key in (("CPU", "cpu"), ("GPU", "gpu"), ("RAM", "memory")) if how.get(key)]
    if session.used.co2 is not None:
        parts.append(f"CO2 by the electricity mix of {how.get('country')}")
    else:
        parts.append(f"CO2 {UNKNOWN}: codecarbon does not know the country in run.country")
    return f"codecarbon {how.get('codecarbon')}, offline: {', '.join(parts)}"


def _counted(texts: Iterable[str]) -> list[str]:
    found: dict[str, int] = {}
    for text in texts:
        found[text] = found.get(text, 0) + 1
    return [f"{text} ({number} session{'s' if number > 1 else ''})" for text, number in found.items()]
