"""Read ``compute.jsonl``: the sessions of a run with their stages, and their summary."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolkit.runfolder import TRAINING_STAGES, parse_json
from toolkit.runfolder.usage.counters import Usage, total

UNFINISHED = "unfinished"
"""Outcome of a session without a last line: it was killed, or it still runs."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of one session."""

    name: str
    used: Usage


@dataclass(frozen=True, slots=True)
class Session:
    """One session: a command that was started in a run folder. ``used`` includes all ``stages``."""

    command: str
    purpose: str
    began: str
    outcome: str
    processes: int
    used: Usage
    stages: tuple[Stage, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    energy: str | None = None
    """Reason that energy was not measured."""
    id: str = ""
    """Unique for each session. A copied run folder has the same identifiers."""


@dataclass(frozen=True, slots=True)
class ComputeRecord:
    """All sessions of a run, and the number of corrupt lines."""

    sessions: tuple[Session, ...] = ()
    damaged: int = 0

    @property
    def used(self) -> Usage:
        """Return the usage of all sessions."""
        return total(session.used for session in self.sessions)

    def stages(self) -> dict[str, Usage]:
        """Return stage -> usage in all sessions, in the order of their first lines."""
        found: dict[str, Usage] = {}
        for session in self.sessions:
            for stage in session.stages:
                found[stage.name] = found.get(stage.name, Usage()) + stage.used
        return found


def read_compute(file: Path) -> ComputeRecord:
    """Return the usage record in ``file``. A missing file gives an empty record.

    Corrupt lines are counted and skipped.
    """
    if not file.is_file():
        return ComputeRecord()
    sessions: dict[str, Session] = {}
    stages: dict[str, dict[int, Stage]] = {}
    damaged = 0
    for text in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        if text.strip():
            try:
                _take(parse_json(text), sessions, stages)
            except (ValueError, KeyError, TypeError, AttributeError):
                damaged += 1
    whole = [replace(session, stages=tuple(stages[name].values())) for name, session in sessions.items()]
    return ComputeRecord(tuple(_of_all_processes(session) for session in whole), damaged)


def _take(line: Mapping[str, Any], sessions: dict[str, Session], stages: dict[str, dict[int, Stage]]) -> None:
    name, event = line["start"], line["event"]
    if event == "machine":
        sessions[name] = replace(sessions[name], machine={**sessions[name].machine, **_facts(line["facts"])})
        return
    used = Usage.from_json(line["used"])
    part = line.get("stage", {})
    stage = Stage(str(part["name"]), Usage.from_json(part["used"])) if part else None
    if event == "start":
        sessions[name] = _begun(line, used)
        stages[name] = {}
    else:
        outcome = str(line["outcome"]) if event == "end" else sessions[name].outcome
        sessions[name] = replace(sessions[name], used=used, outcome=outcome)
    if stage:
        stages[name][int(part["number"])] = stage


def _begun(line: Mapping[str, Any], used: Usage) -> Session:
    return Session(
        command=str(line["command"]),
        purpose=str(line["purpose"]),
        began=str(line["time"]),
        outcome=UNFINISHED,
        processes=int(line["processes"]),
        used=used,
        machine=_facts(line["machine"]),
        versions={str(name): str(version) for name, version in line["versions"].items()},
        energy=None if line["energy"] is None else str(line["energy"]),
        id=str(line["start"]),
    )


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts of a machine in the types that reports expect.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: a fact has another type.
    """
    found = dict(facts)
    if "gpus" in found:
        found["gpus"] = [{"name": str(one["name"]), "memory_gb": one["memory_gb"]} for one in found["gpus"]]
    if "energy" in found:
        found["energy"] = dict(found["energy"].items())
    if "unseen" in found:
        found["unseen"] = [str(one) for one in found["unseen"]]
    if "bypassed" in found:
        found["bypassed"] = {str(what): int(times) for what, times in found["bypassed"].items()}
    return found


def _of_all_processes(session: Session) -> Session:
    """Return the usage of all processes.

    Only the first process records. The others hold a GPU and train as much.
    """
    if session.processes == 1:
        return session
    stages = tuple(Stage(stage.name, _scaled(stage, session.processes)) for stage in session.stages)
    own, shared = total(stage.used for stage in session.stages), total(stage.used for stage in stages)
    used = replace(
        session.used,
        gpu=session.used.gpu * session.processes,
        cpu=session.used.cpu + shared.cpu - own.cpu,
        counts=session.used.counts + (shared.counts - own.counts),
    )
    return replace(session, stages=stages, used=used)


def _scaled(stage: Stage, processes: int) -> Usage:
    used = replace(stage.used, gpu=stage.used.gpu * processes)
    if stage.name not in TRAINING_STAGES:
        return used
    return replace(used, cpu=used.cpu * processes, counts=used.counts.times(processes))


HOUR = 3600.0
UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True)
class ComputeSummary:
    """Usage of all sessions of a run, as in results.json. None: not measured.

    Attributes:
        sessions: number of commands that worked in the run.
        wall_hours: hours of these commands.
        cpu_hours: hours of CPU time.
        gpu_hours: hours in which a GPU was held.
        peak_memory_gb: largest RAM of the process, in GB of 1e9 bytes.
        peak_gpu_memory_gb: largest GPU memory, in the same unit.
        energy_kwh: energy of the machine.
        energy_hours: hours of which the energy was measured.
        co2_kg: CO2 of this energy, if ``run.country`` is set.
        training_flops_formula: FLOPs of the training by formula.
        damaged_lines: lines of the usage record that cannot be read.
    """

    sessions: int
    wall_hours: float
    cpu_hours: float
    gpu_hours: float
    peak_memory_gb: float | None
    peak_gpu_memory_gb: float | None
    energy_kwh: float | None
    energy_hours: float
    co2_kg: float | None
    training_flops_formula: float | None
    damaged_lines: int
    bypassed_savings: Mapping[str, int] = field(default_factory=dict)
    """Maps each saving of repeated work that was not used, with the reason, to the number of its calls."""


def summarise_compute(file: Path) -> ComputeSummary | None:
    """Return the summary of a usage record. None: nothing was recorded."""
    record = read_compute(file)
    if not record.sessions:
        return None
    used = record.used
    return ComputeSummary(
        sessions=len(record.sessions),
        wall_hours=_rounded(used.wall / HOUR),
        cpu_hours=_rounded(used.cpu / HOUR),
        gpu_hours=_rounded(used.gpu / HOUR),
        peak_memory_gb=None if used.memory is None else _rounded(used.memory / 1e9),
        peak_gpu_memory_gb=None if used.gpu_memory is None else _rounded(used.gpu_memory / 1e9),
        energy_kwh=used.energy,
        energy_hours=_rounded(used.energy_wall / HOUR),
        co2_kg=used.co2,
        training_flops_formula=used.counts.training or None,
        damaged_lines=record.damaged,
        bypassed_savings=bypassed_savings(record.sessions),
    )


def bypassed_savings(sessions: Iterable[Session]) -> dict[str, int]:
    """Return the calls that repeated work because a saving was not used. See ``counters.note_bypass``."""
    calls: Counter[str] = Counter()
    for session in sessions:
        calls.update(session.machine.get("bypassed", {}))
    return dict(sorted(calls.items()))


def compute_line(file: Path) -> str | None:
    """Return one line for the end of a run. None: nothing was recorded."""
    record = read_compute(file)
    return describe(record) if record.sessions else None


def describe(record: ComputeRecord) -> str:
    """Return wall, CPU and GPU hours, peak memory and energy in one line."""
    used = record.used
    parts = [f"{figure(used.wall / HOUR)} h wall", f"{figure(used.cpu / HOUR)} CPU h"]
    parts.append(f"{figure(used.gpu / HOUR)} GPU h" if used.gpu else "no GPU")
    if used.memory is not None:
        parts.append(f"{used.memory / 1e9:.1f} GB RAM")
    if used.gpu_memory is not None:
        parts.append(f"{used.gpu_memory / 1e9:.1f} GB GPU memory")
    parts.append(f"energy {energy(used)}")
    return ", ".join(parts)


def energy(used: Usage) -> str:
    """Return the energy in kWh as text, with the fraction of the time that it covers if that is below 99 %."""
    if used.energy is None:
        return UNKNOWN
    covered = used.energy_wall / used.wall if used.wall else 0.0
    part = "" if covered > 0.99 else f" (over {covered:.0%} of the time)"
    return f"{figure(used.energy)} kWh{part}"


def figure(value: float) -> str:
    """Return a value with three significant digits: 0.0123, 4.56, 789, 12,345."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
