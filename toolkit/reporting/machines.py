"""On what the runs ran, and how their energy was found, each distinct answer once."""

from collections.abc import Iterable, Sequence

from toolkit.runfolder.usage import UNKNOWN, Start

TOO_SHORT = "not measured: over before codecarbon began, or killed"


def machines(starts: Sequence[Start]) -> list[str]:
    """CPU, memory, disk and GPUs of each kind of machine, with the number of starts on it."""
    return _counted(_machine(start) for start in starts)


def accuracy(starts: Sequence[Start]) -> list[str]:
    """What was measured and what estimated, the country of the CO2, or why there is no figure."""
    return _counted(_accuracy(start) for start in starts)


def versions_of(starts: Sequence[Start]) -> list[str]:
    """The versions of Python and libraries, each distinct set once."""
    return _counted(", ".join(f"{name} {version}" for name, version in start.versions.items()) for start in starts)


def _machine(start: Start) -> str:
    facts = start.machine
    cores = f"{facts.get('cores', UNKNOWN)} cores"
    if facts.get("cores_allowed") not in (None, facts.get("cores")):
        cores += f" ({facts['cores_allowed']} allowed)"
    gpus = [f"{one['name']} ({one['memory_gb']} GB)" for one in facts.get("gpus", ())]
    used = ", ".join(f"{gpus.count(name) * start.processes} x {name}" for name in dict.fromkeys(gpus))
    parts = [str(facts.get("cpu", UNKNOWN)), cores, _size(facts.get("memory_gb"), "memory")]
    parts += [_size(facts.get("disk_gb"), "disk"), f"GPUs used: {used or 'none'}"]
    if cuda := facts.get("cuda"):
        parts.append(f"CUDA {cuda}")
    if start.processes > 1:
        parts.append(f"{start.processes} processes")
    return ", ".join(parts)


def _size(value: object, what: str) -> str:
    return f"{what} {UNKNOWN}" if value is None else f"{value} GB {what}"


def _accuracy(start: Start) -> str:
    if start.energy:
        return f"{UNKNOWN}: {start.energy}"
    if problem := start.machine.get("energy_problem"):
        return f"{UNKNOWN}: {problem}"
    how = start.machine.get("energy")
    if start.used.energy is None or not how:
        return TOO_SHORT
    parts = [
        f"{name} {how[key]}" for name, key in (("CPU", "cpu"), ("GPU", "gpu"), ("memory", "memory")) if how.get(key)
    ]
    if start.used.co2 is not None:
        parts.append(f"CO2 by the mix of electricity of {how.get('country')}")
    else:
        parts.append(f"CO2 {UNKNOWN}: run.country names no country that codecarbon knows")
    return f"codecarbon {how.get('codecarbon')}, offline: {', '.join(parts)}"


def _counted(texts: Iterable[str]) -> list[str]:
    found: dict[str, int] = {}
    for text in texts:
        found[text] = found.get(text, 0) + 1
    return [f"{text} ({number} start{'s' if number > 1 else ''})" for text, number in found.items()]
