"""Several processes of one run (`accelerate launch`): which one this is, and which of them writes.

The launcher says so in the environment, as torch.distributed has it. Rank 0 does everything that one process would;
the others only train beside it.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from toolkit.errors import Interrupted


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes work on the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes the run folder and tells of it."""
    return rank() == 0


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Notes the first signal while its ``with`` block runs; whoever works in steps looks at ``requested``.

    The handlers that were there before come back afterwards. Outside the main thread, where Python allows no
    handlers, it never becomes ``requested``.

    Args:
        notify: called with the signal's number when it is noted. It runs inside the handler: write with ``os.write``.
    """

    def __init__(self, notify: Callable[[int], None] = lambda number: None) -> None:
        self.number: int | None = None
        self._notify = notify
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.number is not None

    def check(self, saved: str) -> None:
        """Raise ``Interrupted`` if a signal has come; ``saved`` says what is safe on disk."""
        if self.number is not None:
            raise Interrupted(self.number, saved)

    def join(self, number: int) -> None:
        """Stop as another process of this run was asked to."""
        self.number = self.number or number

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.number = number
        self._notify(number)
