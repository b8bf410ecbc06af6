"""Show progress and log lines: progress bars on a terminal, plain lines everywhere else."""

import logging
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from toolkit.cli.output import is_quiet
from toolkit.runfolder import LOGGER, Progress, format_duration, hide_secrets, is_main_process, no_progress

SECONDS_BETWEEN_LINES = 10.0
SPEED_WINDOW = 1800.0
"""Seconds of work from which the remaining time is estimated. rich's default of 30 s is shorter than two optimizer
steps of a large model."""

NOISY_LOGGERS = ("torchao", "bitsandbytes")
"""Loggers that warn about kernels that a CPU does not have. The toolkit does not use them. Their errors are shown."""


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[tuple[Progress, Callable[[int], None]]]:
    """Show log lines and progress while the block runs.

    Args:
        stream: where to show them. Default: standard error.

    Yields:
        A callback for progress, and a callback for the number of a signal that requests a stop.
    """
    hide_library_warnings()
    console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
    handler = _ScreenHandler(console)
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    level = logger.level
    # Only the main process of a distributed run logs.
    logger.setLevel((logging.WARNING if is_quiet() else logging.INFO) if is_main_process() else logging.ERROR)
    try:
        if is_quiet():
            yield no_progress, report_signal
        elif console.is_terminal:
            with Bars(*_COLUMNS, console=console, transient=True, speed_estimate_period=SPEED_WINDOW) as bars:
                yield TerminalBars(bars), report_signal
        else:
            yield PlainLines(console), report_signal
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def hide_library_warnings() -> None:
    """Show only the errors of ``NOISY_LOGGERS``."""
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[note]}"),
)


@dataclass
class TerminalBars:
    """One progress bar per unfinished stage. A bar disappears when its stage finishes."""

    bars: Bars
    tasks: dict[str, TaskID] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Implement ``Progress``."""
        if _is_repeated_end(self.complete, what, done, total):
            return
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, completed=done, total=total or None, note=note)
        self.bars.update(self.tasks[what], completed=done, total=total or None, note=note)
        if what in self.complete:
            self.bars.remove_task(self.tasks.pop(what))


@dataclass
class PlainLines:
    """One line every ten seconds and at the end of a stage, with the remaining time."""

    console: Console
    started: dict[str, tuple[float, int]] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)
    last_line: float = float("-inf")

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Implement ``Progress``."""
        if _is_repeated_end(self.complete, what, done, total):
            return
        now = time.monotonic()
        since, first = self.started.setdefault(what, (now, done))
        if what in self.complete:
            del self.started[what]
        elif now - self.last_line < SECONDS_BETWEEN_LINES:
            return
        self.last_line = now
        left = (now - since) / (done - first) * (total - done) if done > first and total > done else None
        parts = [f"{what}: {done:,}" + (f" of {total:,}" if total else "")]
        parts += [f"{format_duration(left)} left"] if left is not None else []
        self.console.print(", ".join([*parts, note] if note else parts), markup=False)


def report_signal(number: int) -> None:
    """Report that the first signal was received. It runs in a signal handler, in which printing is not safe."""
    text = "\nstopping after this step. Send the signal again to stop at once and lose unsaved work\n"
    try:
        os.write(2, text.encode())
    except OSError:
        # The terminal is closed. Every later line would be an error that ends the run before it is saved.
        _silence_closed_terminal()


def _silence_closed_terminal() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        if stat.S_ISCHR(os.fstat(output).st_mode):
            os.dup2(nowhere, output)
    os.close(nowhere)


class _ScreenHandler(logging.Handler):
    """Show log lines from INFO upwards, without the time, above the progress bars."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        suffix = f" [{record.problem.code}]" if hasattr(record, "problem") else ""
        self.console.print(hide_secrets(prefix + record.getMessage() + suffix), style=style, markup=False)


def _is_repeated_end(complete: set[str], what: str, done: int, total: int) -> bool:
    """Return whether the end of ``what`` was reported before, and update ``complete``."""
    if not total or done < total:
        complete.discard(what)
        return False
    repeated = what in complete
    complete.add(what)
    return repeated
