"""The input of a stage.

A training stage starts from ``context.weights``, saves checkpoints in ``context.run.stage_folder(name)``, saves its
weights in ``context.run.weights_folder(name)``, and returns its result. After an interruption it is called again and
resumes from its last checkpoint. It calls ``context.report`` after each optimizer step, reads
``context.stop.requested``, and raises Interrupted when its state is saved.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import warn
from toolkit.recipe import Recipe
from toolkit.runfolder import Progress, RunFolder, StopRequest, current_weights, is_main_process, no_progress

if TYPE_CHECKING:  # the pipeline and its tests need neither numpy nor pyarrow to pass a context on
    from toolkit.data.loading import DataSplits
    from toolkit.images import ImageStore, StoreReport

DataAndImages = tuple["DataSplits", "ImageStore"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Context:
    """The input of a stage.

    Attributes:
        recipe: the recipe of the run.
        run: the run folder.
        data: the splits.
        images: the store of the images.
        stop: whether a signal requested a stop.
        progress: called with the progress of the stage.
    """

    recipe: Recipe
    run: RunFolder
    data: "DataSplits"
    images: "ImageStore"
    stop: StopRequest
    progress: Progress = no_progress

    @property
    def weights(self) -> Path | None:
        """Return the newest weights. None: the base model. Raises RunError as ``current_weights``."""
        return current_weights(self.run, self.recipe)

    def report(self, stage: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Report an optimizer step in metrics.jsonl, log.txt and the progress. Only the main process reports."""
        if not is_main_process():
            return
        self.run.log_metrics(stage, step, figures)
        note = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        log.debug("%s step %d of %d: %s", stage, step, steps, note)
        self.progress(stage, step, steps, _shown(figures))

    def check_stop_before_first_step(self, done: int) -> None:
        """Raise Interrupted after a signal, during work before the first optimizer step, which saves nothing."""
        self.stop.check("no step had begun")

    def count_images(self, stage: str) -> "StoreReport":
        """Return counts of what happened to images so far, and warn about replaced and uncached ones."""
        found = self.images.report()
        if found.placeholders:
            warn(
                "images.placeholders_used",
                "the number of images replaced by a grey square should be 0",
                place=stage,
                value=found.placeholders,
                remedy='Set images.unreadable = "stop" to find unreadable images, or "skip" to leave out their rows.',
            )
        if found.unstored:
            warn(
                "images.not_cached",
                f"the number of images missing from the disk cache should be 0 ({found.cache_problem})",
                place=stage,
                value=found.unstored,
                remedy="Free disk space, or set images.disk_cache = false.",
            )
        return found


_SHOWN = ("loss", "reward", "reward_std")


def _shown(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {figures[name]:.3g}" for name in _SHOWN if name in figures)
