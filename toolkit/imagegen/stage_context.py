"""The context of an [imagegen] stage: recipe, run folder, device, progress and trackers, and the results it saves."""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from toolkit.errors import RunError
from toolkit.imagegen.settings import imagegen_of
from toolkit.imagegen.trackers import Log
from toolkit.recipe import Recipe
from toolkit.recipe.imagegen import Imagegen
from toolkit.runfolder import Progress, RunFolder, StopRequest, no_progress

log = logging.getLogger(__name__)

Result = TypeVar("Result")


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
