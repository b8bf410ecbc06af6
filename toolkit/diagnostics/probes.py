"""Probes: each imports one library in its own process. Two run at a time, within a time limit."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from toolkit.diagnostics import probe_script
from toolkit.runfolder import Progress, hide_secrets, no_progress
from toolkit.runfolder.logs import SECRET_VARIABLES

AT_ONCE = 2
LIMIT = 120.0
"""Seconds for one library. The first import after an installation compiles it and reads gigabytes."""
TOTAL = 300.0
"""Seconds for all libraries."""
POLL_SECONDS = 0.02
MAX_OUTPUT = 20_000
"""Bytes of a probe's output that are read, from its end."""

End = Literal["loaded", "missing", "failed", "died", "hung", "untried"]


GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """A CUDA device, as torch describes it. ``error``: why it cannot compute. Empty: it computes."""

    name: str
    capability: tuple[int, int]
    total: int
    """Bytes."""
    free: int = 0
    """Bytes."""
    bf16: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """The build of torch, its CUDA devices, and the warnings while it searched for them."""

    version: str = ""
    cuda: str | None = None
    warnings: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True, slots=True)
class ExtensionFacts:
    """The compiled extension of a library: whether it works on a GPU, and why it cannot be used."""

    cuda: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class HubFacts:
    """The access to a model on the Hub. ``kinds`` has the name of the error's class, and those of its base classes."""

    offline: bool = False
    cached: bool = False
    error: str = ""
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """JSON object that the script of a probe writes.

    Attributes:
        state: "done". "importing", "inspecting": the process ended before. Empty: it ended before it could write.
        error: The exception and its causes, one per line. The root cause is last. None: there was no exception.
        missing: The module that could not be found.
        where: The file and line of the error.
        torch: The facts of the probe "torch".
        extension: The facts of the probes "xformers" and "bitsandbytes".
        hub: The facts of the probe "hub".
    """

    state: Literal["", "importing", "inspecting", "done"] = ""
    error: str | None = None
    missing: str | None = None
    where: str = ""
    torch: TorchFacts = TorchFacts()
    extension: ExtensionFacts = ExtensionFacts()
    hub: HubFacts = HubFacts()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one probe.

    Attributes:
        name: The name of the probe.
        end: "loaded". "missing": not installed. "failed": the import raised. "died": the process died. "hung": the time
            limit was exceeded. "untried": the time for all libraries was used up.
        seconds: The duration.
        error: The exception with the root cause in the last line, or how the process died.
        where: The file and line of the error, if known.
        report: The JSON object that the script wrote.
    """

    name: str
    end: End
    seconds: float = 0.0
    error: str = ""
    where: str = ""
    report: Report = Report()

    @property
    def cause(self) -> str:
        """Return the root cause in one line of at most 200 characters."""
        line = self.error.strip().rpartition("\n")[2]
        return line if len(line) <= 200 else f"{line[:199]}…"


def run_probes(
    names: Sequence[str],
    *,
    model: str = "",
    limit: float = LIMIT,
    total: float = TOTAL,
    progress: Progress = no_progress,
) -> dict[str, Outcome]:
    """Return the outcome of each probe. After ``total`` seconds, running probes are stopped and others are not started.

    Args:
        names: The probes, which are keys of ``probe_script.MODULES``, in the order of their start.
        model: The model that the probe "hub" looks up.
        limit: The seconds for one probe.
        total: The seconds for all probes.
        progress: Called as probes end.
    """
    over = time.monotonic() + total
    waiting, running = list(names), list[_Process]()
    found: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="toolkit-doctor-") as folder, _stop_all(running):
        while waiting or running:
            while waiting and len(running) < AT_ONCE and time.monotonic() < over:
                seconds = min(limit, over - time.monotonic())
                running.append(_Process(waiting.pop(0), Path(folder), seconds, model))
            for process in [one for one in running if one.is_over()]:
                running.remove(process)
                found[process.name] = process.outcome()
                progress("loading libraries", len(found), len(names), process.name)
            if not running and time.monotonic() >= over:
                found |= {name: Outcome(name, "untried") for name in waiting}
                waiting.clear()
            time.sleep(POLL_SECONDS)
    return found


class _Process:
    """A running probe."""

    def __init__(self, name: str, folder: Path, limit: float, model: str) -> None:
        self.name, self._limit = name, limit
        self._result, self._output = folder / f"{name}.json", folder / f"{name}.txt"
        self._begun = time.monotonic()
        self._hung = False
        # With -P, files of this package and of the working directory cannot shadow a library.
        command = [sys.executable, "-P", probe_script.__file__, str(self._result), name, str(limit), model]
        with self._output.open("wb") as output:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(name, folder),
                start_new_session=True,
            )

    def is_over(self) -> bool:
        """Return whether the probe has ended. It is stopped at its time limit."""
        if self._child.poll() is not None:
            return True
        if time.monotonic() - self._begun < self._limit:
            return False
        self._hung = True
        self.stop()
        return True

    def stop(self) -> None:
        """Stop the process and its children."""
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
        else:  # Windows
            self._child.kill()
        self._child.wait()

    def outcome(self) -> Outcome:
        """Return the result."""
        seconds = time.monotonic() - self._begun
        report = _read(self._result)
        end, error = self._end(report)
        where = report.where or _deepest(self._text() if end in ("died", "hung") else "")
        return Outcome(self.name, end, seconds, hide_secrets(error), hide_secrets(where), report)

    def _end(self, report: Report) -> tuple[End, str]:
        if report.state == "done":
            return "loaded", ""
        if self._hung:
            return "hung", f"no result within {self._limit:.0f} s"
        if report.error is not None:
            own = {wanted.partition(":")[0].partition(".")[0] for wanted in probe_script.MODULES[self.name]}
            return "missing" if report.missing in own else "failed", report.error
        code = self._child.returncode
        how = f"ended by {_signal_name(-code)}" if code < 0 else f"exited with code {code}"
        return "died", f"{how} while {'being inspected' if report.state == 'inspecting' else 'being imported'}"

    def _text(self) -> str:
        with self._output.open("rb") as output:
            output.seek(max(0, self._output.stat().st_size - MAX_OUTPUT))
            return output.read().decode(errors="replace")


@contextmanager
def _stop_all(running: list[_Process]) -> Iterator[None]:
    """Stop all probes at the end of the block, including after Ctrl-C."""
    try:
        yield
    finally:
        for process in running:
            process.stop()


def _environment(name: str, folder: Path) -> dict[str, str]:
    """Return the environment of a probe: without tokens and Hub access, except for the probe of the Hub."""
    inherited = {key: value for key, value in os.environ.items() if name == "hub" or key not in SECRET_VARIABLES}
    quiet = {
        "UNSLOTH_COMPILE_LOCATION": str(folder / "unsloth"),  # The default is the working directory.
        "UNSLOTH_AUTO_INSTALL": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
    }
    return inherited | quiet | ({} if name == "hub" else {"HF_HUB_OFFLINE": "1"})


def _read(result: Path) -> Report:
    try:
        report = _hidden(json.loads(result.read_text(encoding="utf-8")))
        return TypeAdapter(Report).validate_python(report)
    except (OSError, ValueError):  # The process died before it could write.
        return Report()


def _deepest(output: str) -> str:
    """Return file and line of the deepest frame in the traceback of faulthandler."""
    match = re.search(r'(?:Fatal Python error|Timeout \()[^"]*File "([^"]+)", line (\d+)', output)
    return f"{match[1]}:{match[2]}" if match else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _hidden(value: object) -> object:
    """Return a JSON value without secrets."""
    if isinstance(value, dict):
        return {key: _hidden(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_hidden(inner) for inner in value]
    return hide_secrets(value) if isinstance(value, str) else value
