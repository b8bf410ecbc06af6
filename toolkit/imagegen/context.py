"""The context of an [imagegen] stage: recipe, run folder, device, progress and experiment trackers."""

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import MissingExtraError, RunError
from toolkit.imagegen.seeds import imagegen_of
from toolkit.recipe import Recipe, Run
from toolkit.recipe.imagegen import Imagegen
from toolkit.runfolder import Progress, RunFolder, StopRequest, no_progress, read_state

log = logging.getLogger(__name__)


PROJECT = "toolkit"

Log = Callable[[str, int, Mapping[str, float]], None]
"""Logs the figures of a stage (its name, and the number of the epoch or round)."""


@dataclass(frozen=True, slots=True)
class StageContext:
    """Recipe, run folder, stop request, progress and trackers of a stage."""

    recipe: Recipe
    run: RunFolder
    stop: StopRequest
    progress: Progress = no_progress
    trackers: tuple[Log, ...] = ()

    @property
    def section(self) -> Imagegen:
        """The recipe's section [imagegen]."""
        return imagegen_of(self.recipe)

    @property
    def device(self) -> torch.device:
        """The device that networks run on."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def report(self, stage: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Report a finished epoch or round: in metrics.jsonl, the log, the progress bar, and the recipe's trackers."""
        self.run.log_metrics(stage, step, figures)
        for track in self.trackers:
            track(stage, step, figures)
        note = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        log.debug("%s %d of %d: %s", stage, step, steps, note)
        self.progress(stage, step, steps, note)


@contextmanager
def tracking(settings: Run, run: RunFolder) -> Iterator[tuple[Log, ...]]:
    """Return a function for each tracker of ``run.report_to``. They are closed when the block ends.

    Raises:
        MissingExtraError: a tracker is not installed.
        RunError: a tracker cannot be started.
    """
    with ExitStack() as opened:
        logs = []
        for name in settings.report_to:
            log, close = _open(name, run)
            opened.callback(close)
            logs.append(log)
        yield tuple(logs)


def _open(name: str, run: RunFolder) -> tuple[Log, Callable[[], None]]:
    try:
        return _OPEN[name](run)
    except ImportError as error:
        raise MissingExtraError(name, "tracking", f"run.report_to = [{name!r}]") from error
    except _failures() as error:
        raise RunError(
            "imagegen.tracker_not_started",
            f"the tracker {name} must start",
            place="run.report_to",
            value=str(error).partition("\n")[0],
            remedy="Log in to it, set WANDB_MODE=offline for wandb, or remove it from run.report_to.",
        ) from error


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors of a tracker that cannot start. wandb has its own, and is loaded only if it is named."""
    errors = getattr(sys.modules.get("wandb"), "errors", None)
    return (OSError, RuntimeError, ValueError, *((errors.Error,) if errors else ()))


def _open_tensorboard(run: RunFolder) -> tuple[Log, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(_folder(run, "tensorboard")))

    def log(stage: str, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(f"{stage}/{name}", value, step)

    return log, writer.close


def _open_wandb(run: RunFolder) -> tuple[Log, Callable[[], None]]:
    import wandb  # type: ignore[import-not-found, unused-ignore]

    folder = str(_folder(run, "wandb"))
    session = wandb.init(project=PROJECT, name=run.name, id=_run_id(run), resume="allow", dir=folder)

    def log(stage: str, step: int, figures: Mapping[str, float]) -> None:
        # wandb's own step must rise through all stages, so each stage has a step of its own.
        session.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in figures.items()}})

    return log, session.finish


def _run_id(run: RunFolder) -> str:
    """Return one id per run, so that a resumed run continues its curves and a fresh one of its name does not."""
    began = read_state(run).sessions[0].started
    return hashlib.sha256(f"{run.name}/{began}".encode()).hexdigest()[:16]


def _open_trackio(run: RunFolder) -> tuple[Log, Callable[[], None]]:
    import trackio  # type: ignore[import-not-found, unused-ignore]

    trackio.init(project=PROJECT, name=f"{run.name}-{_run_id(run)}", resume="allow")

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
