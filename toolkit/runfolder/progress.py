"""How far a long piece of work has come, told to whoever shows it."""

from typing import Protocol


class Progress(Protocol):
    """Called as work goes on; the command line draws a bar or writes a line now and then."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` pieces of ``what`` (a stage, such as ``sft``) are done; ``note`` holds figures."""


def silent(what: str, done: int, total: int, note: str = "") -> None:
    """Shows nothing."""


def spell_time(seconds: float) -> str:
    """``2 h 5 min``, ``1 min 20 s`` or ``7 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
