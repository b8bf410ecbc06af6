"""The context of an [imagegen] stage: recipe, run folder, device, progress and experiment trackers."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from toolkit.evaluation.trackers import NO_TRACKERS, Trackers
from toolkit.imagegen.seeds import imagegen_of
from toolkit.recipe import Recipe
from toolkit.recipe.imagegen import Imagegen
from toolkit.runfolder import Progress, RunFolder, StopRequest, no_progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StageContext:
    """Recipe, run folder, stop request, progress and trackers of a stage."""

    recipe: Recipe
    run: RunFolder
    stop: StopRequest
    progress: Progress = no_progress
    trackers: Trackers = NO_TRACKERS

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
        self.trackers.figures(stage, step, figures)
        note = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        log.debug("%s %d of %d: %s", stage, step, steps, note)
        self.progress(stage, step, steps, note)
