"""Experiment trackers of ``run.report_to``: losses, pass rates, learning rates and scores. No image is uploaded."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.recipe import Run
from toolkit.run import RunFolder

PROJECT = "toolkit"

Log = Callable[[str, int, Mapping[str, float]], None]
"""Logs the figures of a stage (its name, and the number of the epoch or round)."""


@contextmanager
def tracking(settings: Run, run: RunFolder) -> Iterator[tuple[Log, ...]]:
    """Return a function for each tracker of ``run.report_to``. They are closed when the block ends."""
    opened = [_OPEN[name](run) for name in settings.report_to]
    try:
        yield tuple(log for log, _ in opened)
    finally:
        for _, close in opened:
            close()


def _open_tensorboard(run: RunFolder) -> tuple[Log, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(_folder(run, "tensorboard")))

    def log(stage: str, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(f"{stage}/{name}", value, step)

    return log, writer.close


def _open_wandb(run: RunFolder) -> tuple[Log, Callable[[], None]]:
    import wandb  # type: ignore[import-not-found, unused-ignore]

    # One id per run, so that a resumed run continues its curves.
    session = wandb.init(project=PROJECT, name=run.name, id=run.name, resume="allow", dir=str(_folder(run, "wandb")))

    def log(stage: str, step: int, figures: Mapping[str, float]) -> None:
        # wandb's own step must rise through all stages, so each stage has a step of its own.
        session.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in figures.items()}})

    return log, session.finish


def _open_trackio(run: RunFolder) -> tuple[Log, Callable[[], None]]:
    import trackio  # type: ignore[import-not-found, unused-ignore]

    trackio.init(project=PROJECT, name=run.name)

    def log(stage: str, step: int, figures: Mapping[str, float]) -> None:
        trackio.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in figures.items()}})

    return log, trackio.finish


def _folder(run: RunFolder, name: str) -> Path:
    folder = run.path / name
    folder.mkdir(exist_ok=True)
    return folder


_OPEN: Mapping[str, Callable[[RunFolder], tuple[Log, Callable[[], None]]]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "trackio": _open_trackio,
}
