"""What a report reads of one run: the results of its finished stages, its metrics, and its plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.data.result import DataResult
from toolkit.errors import RecipeError, ToolkitError, warn
from toolkit.evaluation.results import EVALUATE, LABELS, EvaluationResult, evaluation_stage
from toolkit.exporting.results import ExportResult
from toolkit.recipe import Recipe
from toolkit.recipe.user_code import NOT_RUN
from toolkit.reporting.gpu_peaks import GpuPeak, gpu_peaks
from toolkit.runfolder import EXPORT, TRAINING_STAGES, Record, RunFolder
from toolkit.runfolder.files import Value
from toolkit.tasks import TASKS
from toolkit.training.results import DpoResult, GrpoResult, SftResult

if TYPE_CHECKING:  # it imports torch
    from toolkit.imagegen.results import ImagegenResult

TrainingResult = SftResult | DpoResult | GrpoResult
_KINDS: Mapping[str, type[TrainingResult]] = {"sft": SftResult, "dpo": DpoResult, "grpo": GrpoResult}


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """The content of a run folder, of a finished run or of one that is still running.

    Attributes:
        name: the name of the run in the report. Two runs of a report have different names.
        folder: the run folder.
        recipe: the recipe. None: this version cannot read it.
        data: the result of the data stage.
        evaluations: label -> evaluation of the model that `toolkit run` trains, in order.
        others: label -> further evaluations, such as those of exports.
        training: stage -> its result, in order.
        export: the result of the export.
        imagegen: the results of an image generator.
        metrics: stage -> its logged optimizer steps.
        plan: the content of plan.json. Empty: the run has no plan.
        gpu_memory: training stage -> planned and measured peak.
    """

    name: str
    folder: RunFolder
    recipe: Recipe | None
    data: DataResult | None
    evaluations: Mapping[str, EvaluationResult]
    others: Mapping[str, EvaluationResult]
    training: Mapping[str, TrainingResult]
    export: ExportResult | None
    imagegen: "ImagegenResult | None"
    metrics: Mapping[str, list[Record]]
    plan: Record
    gpu_memory: Mapping[str, GpuPeak]

    @property
    def last(self) -> tuple[str, EvaluationResult] | None:
        """Return the label and the last evaluation of the trained model, otherwise of another one."""
        found = list((self.evaluations or self.others).items())
        return found[-1] if found else None


def read_run(folder: RunFolder, name: str = "") -> FinishedRun:
    """Return the content of a run folder. ``name``: its name in the report, by default that of the folder.

    Raises:
        RunError: the result of a stage, or a line of the metrics, is damaged.
    """
    recipe = _recipe(folder)
    own = {evaluation_stage(name): label for name, label in LABELS.items()}
    stages = [stage for stage in folder.finished_stages() if stage.startswith(EVALUATE)]
    others = [stage for stage in stages if stage not in own]
    training = {} if recipe and recipe.imagegen else _KINDS
    return FinishedRun(
        name=name or folder.name,
        folder=folder,
        recipe=recipe,
        data=_result(folder, "data", DataResult),
        evaluations={
            label: folder.result(stage, EvaluationResult) for stage, label in own.items() if folder.is_done(stage)
        },
        others={stage.removeprefix(EVALUATE): folder.result(stage, EvaluationResult) for stage in others},
        training={name: folder.result(name, kind) for name, kind in training.items() if folder.is_done(name)},
        export=_result(folder, EXPORT, ExportResult),
        imagegen=_imagegen(folder, recipe),
        metrics=_by_stage(folder),
        plan=folder.plan(),
        gpu_memory=gpu_peaks(folder),
    )


def _recipe(folder: RunFolder) -> Recipe | None:
    try:
        return folder.recipe(TASKS)
    except RecipeError as error:  # such as a custom task whose file is missing
        warn_of_code(folder, error)
        return None


def warn_of_code(folder: RunFolder, error: ToolkitError) -> None:
    """Warn if the error is that custom code is not run, because a part of the report is then missing."""
    if any(problem.code.endswith(NOT_RUN) for problem in error.problems):
        rule = "the custom code of the recipe is not run, so the report lacks what it computes"
        warn("report.code_not_run", rule, place=folder.path, remedy="Add --custom-code if you trust the run.")


def _result(folder: RunFolder, stage: str, kind: type[Value]) -> Value | None:
    return folder.result(stage, kind) if folder.is_done(stage) else None


def _imagegen(folder: RunFolder, recipe: Recipe | None) -> "ImagegenResult | None":
    if recipe is None or recipe.imagegen is None:
        return None
    from toolkit.imagegen.results import read_result
    from toolkit.imagegen.settings import bootstrap_of

    return read_result(folder, bootstrap_of(recipe))


def _by_stage(folder: RunFolder) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {stage: [] for stage in TRAINING_STAGES}
    for line in folder.metrics():
        found.setdefault(line["stage"], []).append(line)
    return {stage: lines for stage, lines in found.items() if lines}
