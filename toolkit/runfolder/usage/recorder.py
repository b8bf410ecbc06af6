"""Record the usage of a run while it works, so that a killed process loses at most half a minute.

``compute.jsonl`` gets a line at the start, at the end of each stage, every half minute, and at the end. Each line has
the sums of the session so far, and those of the current stage. The last line of a session or stage counts.
"""

import errno
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.errors import Interrupted, warn
from toolkit.recipe import Run
from toolkit.runfolder import (
    RunFolder,
    append_line,
    hide_secrets,
    installed_versions,
    now,
    world_size,
)
from toolkit.runfolder.usage import machine
from toolkit.runfolder.usage.counters import Usage, bypasses, counts, forget_bypasses, largest_known, unseen
from toolkit.runfolder.usage.energy import INSTALL, EnergyMeter, Reading, is_installed

BEAT = 30.0
"""Seconds between two lines. A killed process loses at most this time."""
TICK = 1.0
"""Seconds between two checks whether a GPU is in use."""
ENERGY_AFTER = 5.0
"""Seconds until codecarbon starts. Its start takes seconds, so short work has no energy figure."""


class Recorder:
    """Usage record of one session. Use ``stage`` for each stage."""

    def __init__(self, file: Path, country: str | None) -> None:
        self.id = uuid.uuid4().hex[:12]
        self._file, self._country = file, country
        self._lock = threading.RLock()
        self._begun = self._last_tick = time.monotonic()
        self._cpu, self._counts = machine.cpu_seconds(), counts()
        forget_bypasses()
        self._gpu = 0.0
        self._gpu_peak: int | None = None
        self._energy_wanted = is_installed()
        self._energy: EnergyMeter | None = None
        self._reading = Reading()
        self._facts: dict[str, Any] = {}
        self._stage: tuple[int, str, Usage] | None = None
        self._stages = 0
        self._writable = True

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the block as the stage ``name``."""
        with self._lock:
            before = self._used()
            machine.reset_peaks()
            self._stages += 1
            self._stage = (self._stages, name, before)
        try:
            yield
        finally:
            with self._lock:
                self.add_facts(bypassed=bypasses())  # results.json is written before the end of the session
                self.write_line("stage")
                self._stage = None

    def write_line(self, event: str, **more: object) -> None:
        """Write one line with the usage so far."""
        with self._lock:
            used = self._used()
            line: dict[str, Any] = {"event": event, "start": self.id, "time": now(), "used": used.to_json(), **more}
            if self._stage is not None:
                number, name, before = self._stage
                own = replace(used.since(before), gpu_memory=machine.peak_gpu_memory())
                line["stage"] = {"number": number, "name": name, "used": own.to_json()}
            self._write(line)

    def add_facts(self, **facts: object) -> None:
        """Write new facts of the machine."""
        new = {name: value for name, value in facts.items() if value and self._facts.get(name) != value}
        if new:
            self._facts |= new
            self._write({"event": "machine", "start": self.id, "facts": new})

    def watch(self, ended: threading.Event, beat: float) -> None:
        """Write lines at intervals until the session ends. This method runs in its own thread."""
        written = time.monotonic()
        while not ended.wait(min(TICK, beat)):
            with self._lock:
                self._tick()
            if self._energy_wanted and time.monotonic() - self._begun > ENERGY_AFTER:
                self._begin_energy()
            if time.monotonic() - written >= beat:
                written = time.monotonic()
                self.add_facts(**machine.describe_gpus(), unseen=unseen(), bypassed=bypasses())
                self.write_line("beat")

    def close(self, outcome: str) -> None:
        """Write the last line."""
        self.add_facts(**machine.describe_gpus(), unseen=unseen(), bypassed=bypasses())
        self.write_line("end", outcome=outcome)
        if self._energy is not None:
            self.add_facts(energy=self._energy.describe())
            self._energy.stop()

    def _begin_energy(self) -> None:
        self._energy_wanted = False
        try:
            self._energy = EnergyMeter(self._country)
        except ImportError as error:  # A dependency of codecarbon is missing.
            self._without_energy(f"codecarbon cannot be loaded: {error.name}")
        except Exception as error:  # noqa: BLE001  Hardware queries fail in unpredictable ways.
            self._without_energy(f"codecarbon cannot start: {type(error).__name__}: {error}"[:300])

    def _without_energy(self, why: str) -> None:
        """Log and record once why energy is not measured. Time, memory and counts are still recorded."""
        warn("run.energy_not_measured", f"energy and CO2 of this run are not measured: {why}")
        self.add_facts(energy_problem=hide_secrets(why))

    def _used(self) -> Usage:
        self._tick()
        self._gpu_peak = largest_known(self._gpu_peak, machine.peak_gpu_memory())
        if self._energy is not None:
            self._reading = self._energy.read()
            self.add_facts(energy=self._energy.describe())
        reading = self._reading
        return Usage(
            wall=time.monotonic() - self._begun,
            cpu=machine.cpu_seconds() - self._cpu,
            gpu=self._gpu,
            memory=machine.peak_memory(),
            gpu_memory=self._gpu_peak,
            energy=reading.energy,
            energy_wall=reading.seconds,
            co2=reading.co2,
            co2_energy=reading.energy or 0.0 if reading.co2 is not None else 0.0,
            counts=counts() - self._counts,
        )

    def _tick(self) -> None:
        """Add the time since the last check to the GPUs that are in use now."""
        at = time.monotonic()
        self._gpu += (at - self._last_tick) * len(machine.used_gpus())
        self._last_tick = at

    def _write(self, line: dict[str, Any]) -> None:
        try:
            if self._file.is_symlink():
                raise OSError(errno.ELOOP, "it is a link, and a file behind a link is not changed")
            append_line(self._file, line)
        except OSError as error:
            if self._writable:  # A missing usage record must not end the run.
                rule = "the usage record of this run cannot be written"
                warn("run.usage_not_recorded", rule, place=self._file, value=error.strerror or str(error))
            self._writable = False


@contextmanager
def recording(run: RunFolder, settings: Run, command: str, beat: float = BEAT) -> Iterator[Recorder]:
    """Record the usage of the block in the run folder.

    Args:
        run: the run folder.
        settings: [run] of the recipe, for purpose and country.
        command: run, evaluate, export or predict.
        beat: seconds between two lines.
    """
    recorder = Recorder(run.compute_file, settings.country)
    _end_partial_line(run.compute_file)
    recorder.write_line(
        "start",
        command=command,
        purpose=settings.purpose,
        processes=world_size(),
        machine=machine.describe_machine(run.path),
        versions=installed_versions(),
        energy=None if is_installed() else INSTALL,
    )
    ended = threading.Event()
    thread = threading.Thread(target=recorder.watch, args=(ended, beat), name="compute", daemon=True)
    thread.start()
    outcome = "failed"
    try:
        yield recorder
        outcome = "finished"
    except (Interrupted, KeyboardInterrupt):
        outcome = "interrupted"
        raise
    finally:
        ended.set()
        thread.join()
        recorder.close(outcome)


def _end_partial_line(file: Path) -> None:
    """End a line that a killed process left unfinished, so that the next line is separate."""
    if file.is_symlink():
        return  # The first line reports it.
    try:
        with file.open("rb+") as handle:
            if handle.seek(0, 2) and handle.seek(-1, 2) >= 0 and handle.read(1) != b"\n":
                handle.write(b"\n")
    except OSError:
        return  # The file does not exist, or is not writable, which the first line reports.
