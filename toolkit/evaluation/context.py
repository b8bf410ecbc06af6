"""What a stage gets to work with, and what it leaves: the contract between the pipeline and the stages.

A training stage goes on from ``context.weights``, keeps its checkpoints in ``context.run.stage_folder(name)``, puts its
weights into ``context.run.weights_folder(name)``, and returns its record. It is called again after an interruption, and
goes on from its last checkpoint. It calls ``context.report`` after each step, looks at ``context.stop.requested``, and
raises Interrupted once its state is saved.
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
    """A stage's surroundings: recipe, run folder, rows, pictures, the wish to stop, and who is told of progress."""

    recipe: Recipe
    run: RunFolder
    data: "DataSplits"
    images: "ImageStore"
    stop: StopRequest
    progress: Progress = no_progress

    @property
    def weights(self) -> Path | None:
        """What to go on from; None: the base model. Raises RunError as ``current_weights``."""
        return current_weights(self.run, self.recipe)

    def report(self, stage: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Tell of one finished step in metrics.jsonl, log.txt and by progress; of several processes one does."""
        if not is_main_process():
            return
        self.run.log_metrics(stage, step, figures)
        note = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        log.debug("%s step %d of %d: %s", stage, step, steps, note)
        self.progress(stage, step, steps, _shown(figures))

    def no_step_yet(self, done: int) -> None:
        """Raises Interrupted once a signal has come: for work of a stage before its first step, which saves nothing."""
        self.stop.check("no step had begun")

    def count_pictures(self, stage: str) -> Record:
        """What happened to pictures so far, for the stage's record; what a user must know of it is told."""
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
    """One score of an evaluation. Estimates and differences are ``dataclasses.asdict`` of those in ``metrics``."""

    value: Mapping[str, Any]
    """The score's Estimate."""
    baseline: Mapping[str, Any]
    """The Estimate of the majority baseline on the same questions."""
    differences: Mapping[str, Mapping[str, Any]]
    """``baseline``, a further baseline or an earlier evaluation's name -> Paired: this evaluation minus that one."""
    baselines: NotRequired[Mapping[str, Mapping[str, Any]]]
    """Label -> value and differences (to ``baseline``) of further baselines, where the task has some."""


class EvaluationRecord(ScoreRecord):
    """What an evaluation leaves; its own value, baseline and differences are those of the primary score."""

    split: str
    score: str
    """The task's primary score, which the table of results shows; with the way of asking where there are several."""
    also: Mapping[str, ScoreRecord]
    """Further scores, ways of asking and whole chains that get a table."""
    summary: Mapping[str, Any]
    """Summary.to_dict()."""
    pictures: Record
    """Context.count_pictures()."""
    predictions: str
    """The JSONL of answers, relative to the run folder."""
    memory: NotRequired[dict[str, Any]]
    """Where answers carry a memory: ``evaluate.memory.memory_record``."""


class TrainStage(Protocol):
    """A training stage: leaves weights, gives its record."""

    def __call__(self, context: Context) -> Record:
        """Raises Interrupted, ModelError or TrainingError."""


class EvaluateStage(Protocol):
    """Asks the held-out questions."""

    def __call__(self, context: Context, name: str, weights: Path | None, earlier: Sequence[str]) -> EvaluationRecord:
        """Evaluate ``weights`` (None: the base model) as evaluation ``name``, compared with ``earlier`` ones.

        Its files go to ``context.run.stage_folder(f"evaluate-{name}")``.
        """


class ExportStage(Protocol):
    """Writes weights for other programs and sees that they give the same answers."""

    def __call__(self, context: Context, *, out: Path | None = None, force: bool = False) -> Record:
        """Exports ``context.weights`` into ``out``, else the stage's own folder; raises ModelError or RunError.

        ``force``: a folder in ``out`` that is not the stage's own is renamed instead of being refused.
        """


_SHOWN = ("loss", "reward", "reward_std")


def _shown(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {figures[name]:.3g}" for name in _SHOWN if name in figures)
