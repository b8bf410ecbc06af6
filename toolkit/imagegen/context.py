"""The context of an [imagegen] stage: recipe, run folder, device, progress, experiment trackers, and saved results."""

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from toolkit.errors import MissingExtraError, RunError
from toolkit.imagegen.seeds import imagegen_of
from toolkit.recipe import Recipe, Run
from toolkit.recipe.imagegen import Imagegen
from toolkit.runfolder import Progress, RunFolder, StopRequest, no_progress, read_json

log = logging.getLogger(__name__)

Result = TypeVar("Result")

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


def save_result(run: RunFolder, stage: str, result: object) -> None:
    """Save the result of a finished stage.

    Args:
        run: the run folder.
        stage: name of the stage.
        result: a dataclass of plain values and dataclasses.
    """
    run.mark_done(stage, asdict(result))  # type: ignore[call-overload]  # any dataclass


def load_result(run: RunFolder, stage: str, kind: type[Result]) -> Result:
    """Return the result of a finished stage.

    Raises:
        RunError: the stage has not finished, or its record is of another version.
    """
    try:
        return TypeAdapter(kind).validate_python(run.record(stage))
    except ValidationError as error:
        raise RunError(
            "imagegen.stage_record_unreadable",
            f"the record of the stage {stage} must be of this version of the toolkit",
            place=run.stage_folder(stage) / "done.json",
            value=str(error).splitlines()[0],
            remedy="Start again with --fresh. The old folder is kept under another name.",
        ) from error


def save_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Save plain objects and tensors so that a crash leaves the old file, the new one, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_tensors(path: Path) -> dict[str, Any]:
    """Return what ``save_tensors`` saved, on the CPU.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise RunError(
            "imagegen.stage_parameters_unreadable",
            "the parameters of a finished stage must be readable",
            place=path,
            value=str(error).partition("\n")[0],
            remedy="Restore the file, or start again with --fresh. The old folder is kept under another name.",
        ) from error
    return loaded


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
    """Return what a tracker raises if it cannot start. wandb has its own error, and is loaded only if it is named."""
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
    began = read_json(run.run_file)["sessions"][0]["started"]
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
