"""Progress callbacks."""

from typing import Protocol


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
