"""Commands of the toolkit as forked children of one process that has imported everything, so that imports cost no time.

The process is `tests/faults/server.py`. It has one thread, and each child is a session of its own.
"""

import atexit
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
LONGEST_OUTPUT = 1 << 20
"""Bytes of stdout and stderr that are kept."""

CODES = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit codes of a command that saved its state after a signal."""


@dataclass(frozen=True, slots=True)
class KillAt:
    """A signal that a command sends to itself just before its n-th change of a file (from 1)."""

    event: int
    signal: int


@dataclass(frozen=True, slots=True)
class Request:
    """A command to start. Everything in it must be picklable."""

    argv: tuple[str, ...]
    folder: Path
    outputs: Path
    environment: Mapping[str, str]
    kill: KillAt | None
    limits: Mapping[int, tuple[int, int]]
    before: Callable[[], object] | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended.

    Args:
        status: its exit code, or the negative number of the signal that ended it.
        stdout: what it printed.
        stderr: what it printed there.
        seconds: how long it ran.
        limit: the limit that it exceeded, upon which it was killed.
        events: its changes of files, each as "event path": files opened for writing, renamed, removed and so on. Writes
            by native libraries are not among them.
    """

    status: int
    stdout: str
    stderr: str
    seconds: float
    limit: Literal["", "time", "memory"] = ""
    events: tuple[str, ...] = ()

    @property
    def has_traceback(self) -> bool:
        """Whether a traceback or an error of logging was printed."""
        text = self.stdout + self.stderr
        return "Traceback (most recent call last)" in text or "--- Logging error ---" in text

    @property
    def last_line(self) -> str:
        """The last line of stderr that is not empty."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else ""


@dataclass
class Child:
    """A command that was started."""

    pid: int
    started: float
    outputs: "tempfile.TemporaryDirectory[str]"
    descriptor: int = field(init=False)

    def __post_init__(self) -> None:
        self.descriptor = os.pidfd_open(self.pid)

    def ends_within(self, seconds: float) -> bool:
        """Wait at most so long. Return whether it ended."""
        return bool(select.select([self.descriptor], [], [], max(0.0, seconds))[0])

    def has_begun(self) -> bool:
        """Return whether the command line has begun."""
        return Path(self.outputs.name, "begun").exists()

    def send(self, number: int) -> None:
        """Send a signal to the command alone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and all its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def resident(self) -> int:
        """Return the bytes of memory that it holds."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return 0

    def wait(self, limit_s: float, memory: int = 4 * GIB) -> Ended:
        """Wait until it ends. It is killed if it takes longer or holds more memory."""
        limit: Literal["", "time", "memory"] = ""
        while not self.ends_within(0.1):
            limit = "time" if time.monotonic() - self.started > limit_s else limit
            limit = "memory" if self.resident() > memory else limit
            if limit:
                self.kill()
        seconds = time.monotonic() - self.started
        self.kill()  # its children, if it left any
        os.close(self.descriptor)
        status = server().status(self.pid)
        stdout, stderr, events = (_text(Path(self.outputs.name, name)) for name in ("stdout", "stderr", "events"))
        self.outputs.cleanup()
        return Ended(
            status, stdout, stderr, seconds, limit, tuple(events.rpartition("\n")[0].splitlines())
        )  # a kill can cut the last line


def start_command(
    argv: Sequence[str],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    kill: KillAt | None = None,
    limits: Mapping[int, tuple[int, int]] | None = None,
    before: Callable[[], object] | None = None,
) -> Child:
    """Start `toolkit ARGV` in ``folder``.

    Args:
        argv: arguments, without the name of the program.
        folder: the working directory. The cache is ``folder/cache``, HOME ``folder/home``, TMPDIR ``folder/tmp``.
        environment: variables that are added or replaced.
        kill: a signal at a change of a file.
        limits: resource (such as ``resource.RLIMIT_NOFILE``) -> soft and hard limit.
        before: a function of a module, called in the child before the command.
    """
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    outputs = tempfile.TemporaryDirectory(prefix="toolkit-faults-out-")
    places = {"TOOLKIT_CACHE": folder / "cache", "HOME": folder / "home", "TMPDIR": folder / "tmp"}
    added = {**{name: str(path) for name, path in places.items()}, **(environment or {})}
    request = Request(tuple(argv), folder, Path(outputs.name), added, kill, limits or {}, before)
    return Child(server().fork(request), time.monotonic(), outputs)


def run_command(
    argv: Sequence[str],
    folder: Path,
    limit_s: float = 60,
    *,
    memory: int = 4 * GIB,
    environment: Mapping[str, str] | None = None,
    kill: KillAt | None = None,
    limits: Mapping[int, tuple[int, int]] | None = None,
    before: Callable[[], object] | None = None,
) -> Ended:
    """Run `toolkit ARGV` in ``folder`` to its end, or until it exceeds a limit. See ``start_command``."""
    child = start_command(argv, folder, environment=environment, kill=kill, limits=limits, before=before)
    return child.wait(limit_s, memory)


def run_real(argv: Sequence[str], folder: Path, hash_seed: int, seconds: float) -> Ended:
    """Run `toolkit ARGV` as a process that imports everything itself. It is killed after some seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**_environment(folder), "PYTHONHASHSEED": str(hash_seed), "TOOLKIT_CACHE": str(folder / "cache")}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", *argv],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
    return Ended(process.returncode, stdout, stderr, time.monotonic() - began)


def _environment(home: Path) -> dict[str, str]:
    """Return the variables of a command: none of the user's, and one thread."""
    return {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": os.pathsep.join([*(path for path in sys.path if path), str(ROOT)]),
        "HOME": str(home),
        "MPLCONFIGDIR": str(home),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",  # of pyarrow, before any fork
        "TOKENIZERS_PARALLELISM": "false",
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "120",
    }


class Server:
    """The process whose children are the commands."""

    def __init__(self, hash_seed: int = 0) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="toolkit-faults-home-")
        ours, theirs = _pair()
        self._connection = ours
        environment = {**_environment(Path(self._home.name)), "PYTHONHASHSEED": str(hash_seed)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server", str(theirs.fileno())],
            cwd=self._home.name,
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._connection.recv()  # everything is imported

    def fork(self, request: Request) -> int:
        """Start a command. Return the id of its process."""
        self._connection.send(request)
        return int(self._connection.recv())

    def status(self, pid: int) -> int:
        """Return the exit status of a command that has ended."""
        self._connection.send(pid)
        return int(self._connection.recv())

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.wait(30)
        self._home.cleanup()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@cache
def server() -> Server:
    """Return the process of this session. It is started at its first use."""
    made = Server()
    atexit.register(made.close)
    return made


def _pair() -> tuple[Connection, Connection]:
    import multiprocessing

    return multiprocessing.Pipe()


def _text(file: Path) -> str:
    if not file.exists():
        return ""
    with file.open("rb") as handle:
        return handle.read(LONGEST_OUTPUT).decode("utf-8", "replace")
