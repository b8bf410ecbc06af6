"""This process: its rank in a distributed run, stop requests by SIGINT, SIGTERM and SIGHUP, and progress callbacks.

`accelerate launch` sets the rank in the environment, as torch.distributed defines it. The process with rank 0 writes
the run folder.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Protocol

from toolkit.errors import Interrupted


def rank() -> int:
    """Return the rank of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this process writes the run folder and the terminal."""
    return rank() == 0


HANGUP = getattr(signal, "SIGHUP", None)
"""The signal of a closed terminal. Windows has none."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))


class StopRequest:
    """Record the first SIGINT, SIGTERM or SIGHUP while the ``with`` block runs. The second one ends the process.

    A second SIGHUP does not, because the shell and the kernel both send one when a terminal closes. If SIGHUP is
    ignored, as `nohup` starts a command, it stays ignored.

    Loops check ``requested`` after each step. The previous handlers are restored at the end. Outside the main thread,
    Python allows no signal handlers, so ``requested`` stays False.

    Args:
        notify: called with the signal number inside the handler, so it may only call functions of ``os``.
    """

    def __init__(self, notify: Callable[[int], None] = lambda number: None) -> None:
        self.number: int | None = None
        self._notify = notify
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Return whether a signal was received."""
        return self.number is not None

    def check(self, saved: str) -> None:
        """Raise ``Interrupted`` if a signal was received. ``saved`` describes the state on disk."""
        if self.number is not None:
            raise Interrupted(self.number, saved)

    def join(self, number: int) -> None:
        """Request a stop because another process of the run received a signal."""
        self.number = self.number or number

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            handled = [one for one in SIGNALS if one != HANGUP or signal.getsignal(one) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in handled}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number != HANGUP:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.number = number
        self._notify(number)


class Progress(Protocol):
    """Callback that is called while work proceeds, such as a progress bar."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Report that ``done`` of ``total`` items of ``what`` (a stage such as ``sft``) are finished.

        ``note`` has figures to show beside the progress.
        """


def no_progress(what: str, done: int, total: int, note: str = "") -> None:
    """Show nothing."""


def format_duration(seconds: float) -> str:
    """Return a duration as ``2 h 5 min``, ``1 min 20 s`` or ``7 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def is_running(process: int) -> bool:
    """Return whether a process of this machine has this number, as far as it can be known."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to another user, or this system cannot say
        return True
    return True
