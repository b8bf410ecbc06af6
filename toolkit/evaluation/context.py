"""The contract between the pipeline and the stages: the input of a stage, and its record.

A training stage starts from ``context.weights``, saves checkpoints in ``context.run.stage_folder(name)``, saves its
weights in ``context.run.weights_folder(name)``, and returns its record. After an interruption it is called again and
resumes from its last checkpoint. It calls ``context.report`` after each optimizer step, reads
``context.stop.requested``, and raises Interrupted when its state is saved.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict

from toolkit.errors import warn
from toolkit.recipe import Recipe
from toolkit.runfolder import Progress, Record, RunFolder, StopRequest, current_weights, is_main_process, no_progress

if TYPE_CHECKING:  # the pipeline and its tests need neither numpy nor pyarrow to pass a context on
    from toolkit.data.loading import DataSplits
    from toolkit.images import ImageStore

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

    def no_step_yet(self, done: int) -> None:
        """Raise Interrupted after a signal, during work before the first optimizer step, which saves nothing."""
        self.stop.check("no step had begun")

    def count_images(self, stage: str) -> Record:
        """Return counts of what happened to images so far, and warn about replaced and uncached ones."""
        found = self.images.report()
        if found.placeholders:
            warn(
                "images.placeholders_used",
                "the number of images replaced by a gray square should be 0",
                place=stage,
                value=found.placeholders,
            )
        if found.unstored:
            warn(
                "images.not_cached",
                f"the number of images missing from the disk cache should be 0 ({found.cache_problem})",
                place=stage,
                value=found.unstored,
            )
        return {name: value for name, value in asdict(found).items() if value}


class ScoreRecord(TypedDict):
    """One score of an evaluation. Estimates and differences are ``dataclasses.asdict`` of those in ``scoring``."""

    value: Mapping[str, Any]
    """The score's Estimate."""
    baseline: Mapping[str, Any]
    """The Estimate of the majority baseline on the same samples."""
    differences: Mapping[str, Mapping[str, Any]]
    """``baseline``, another baseline or an earlier evaluation -> Paired: this evaluation minus the other."""
    baselines: NotRequired[Mapping[str, Mapping[str, Any]]]
    """Label -> value and differences (to ``baseline``) of the task's other baselines."""


class EvaluationRecord(ScoreRecord):
    """The record of an evaluation. Its own value, baseline and differences are those of the primary score."""

    split: str
    score: str
    """The task's primary score, with the agent-memory mode if there are several."""
    also: Mapping[str, ScoreRecord]
    """Other scores, agent-memory modes and whole episodes that get a table."""
    summary: Mapping[str, Any]
    """``Summary.to_dict()``."""
    pictures: Record
    """``Context.count_images()``."""
    predictions: str
    """The JSONL file of predictions, relative to the run folder."""
    agent_memory: NotRequired[dict[str, Any]]
    """If the task has agent memory: ``agent_memory_modes.memory_record``."""


class TrainStage(Protocol):
    """A training stage. It saves weights and returns its record."""

    def __call__(self, context: Context) -> Record:
        """Train, and raise Interrupted, ModelError or TrainingError."""


class EvaluateStage(Protocol):
    """Evaluates weights on the held-out split."""

    def __call__(self, context: Context, name: str, weights: Path | None, earlier: Sequence[str]) -> EvaluationRecord:
        """Evaluate ``weights`` (None: the base model) as evaluation ``name``, compared with ``earlier`` ones.

        Its files are in ``context.run.stage_folder(f"evaluate-{name}")``.
        """


class ExportStage(Protocol):
    """Exports weights and verifies that they give the same completions."""

    def __call__(self, context: Context, *, out: Path | None = None, force: bool = False) -> Record:
        """Export ``context.weights`` to ``out``, by default the stage's folder. Raises ModelError or RunError.

        ``force``: rename a foreign folder in ``out`` instead of raising an error.
        """


_SHOWN = ("loss", "reward", "reward_std")


def _shown(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {figures[name]:.3g}" for name in _SHOWN if name in figures)
