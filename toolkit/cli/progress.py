"""Progress and log lines on the screen: a bar with the time left on a terminal, plain lines everywhere else."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from toolkit.runfolder import LOGGER, Progress, format_duration, hide_secrets, is_main_process

SECONDS_BETWEEN_LINES = 10.0
MEASURED = 1800.0
"""Seconds of work that the time left is measured over. rich's own 30 s hold no two optimizer steps of a large model."""

ABOUT_THE_MACHINE = ("torchao", "bitsandbytes")
"""Loggers that tell of kernels that a CPU does not have; nothing here uses them. Their errors are still shown."""


@contextmanager
def telling(stream: TextIO | None = None) -> Iterator[tuple[Progress, Callable[[int], None]]]:
    """Show log lines and progress on ``stream`` (default: standard error) while the block runs.

    Gives what long work calls as it goes on, and what is called when a signal asks it to stop.
    """
    hush()
    console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
    handler = _ScreenHandler(console)
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO if is_main_process() else logging.ERROR)  # of several processes one speaks
    try:
        if console.is_terminal:
            with Bars(*_COLUMNS, console=console, transient=True, speed_estimate_period=MEASURED) as bars:
                yield TerminalBars(bars), tell_signal
        else:
            yield PlainLines(console), tell_signal
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def hush() -> None:
    """Have ``ABOUT_THE_MACHINE`` speak of errors alone."""
    for name in ABOUT_THE_MACHINE:
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
    """A bar for what is going on; a finished one disappears."""

    bars: Bars
    tasks: dict[str, TaskID] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """See ``Progress``."""
        if _is_told_twice(self.complete, what, done, total):
            return
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, completed=done, total=total or None, note=note)
        self.bars.update(self.tasks[what], completed=done, total=total or None, note=note)
        if what in self.complete:
            self.bars.remove_task(self.tasks.pop(what))


@dataclass
class PlainLines:
    """A line every ten seconds and when a piece of work is complete, with the time left."""

    console: Console
    started: dict[str, tuple[float, int]] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)
    told: float = float("-inf")

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """See ``Progress``."""
        if _is_told_twice(self.complete, what, done, total):
            return
        now = time.monotonic()
        since, first = self.started.setdefault(what, (now, done))
        if what in self.complete:
            del self.started[what]
        elif now - self.told < SECONDS_BETWEEN_LINES:
            return
        self.told = now
        left = (now - since) / (done - first) * (total - done) if done > first and total > done else None
        parts = [f"{what}: {done:,}" + (f" of {total:,}" if total else "")]
        parts += [f"{format_duration(left)} left"] if left is not None else []
        self.console.print(", ".join([*parts, note] if note else parts), markup=False)


def tell_signal(number: int) -> None:
    """Say that the first signal was understood. Runs inside a signal handler, where printing is not safe."""
    text = "\nstopping after this step; once more ends it at once and loses what is not saved\n"
    os.write(2, text.encode())


class _ScreenHandler(logging.Handler):
    """INFO and above, without the time, above the bars."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        suffix = f" [{record.problem.code}]" if hasattr(record, "problem") else ""
        self.console.print(hide_secrets(prefix + record.getMessage() + suffix), style=style, markup=False)


def _is_told_twice(complete: set[str], what: str, done: int, total: int) -> bool:
    """Whether the end of ``what`` was told before; keeps in ``complete`` what is at its end."""
    if not total or done < total:
        complete.discard(what)
        return False
    told = what in complete
    complete.add(what)
    return told
