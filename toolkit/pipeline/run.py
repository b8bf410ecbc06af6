"""Run the stages of a recipe in order: finished stages are skipped, an interrupted one resumes."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from toolkit.data.result import DataResult
from toolkit.errors import warn
from toolkit.evaluation.custom_metrics import code_digest
from toolkit.evaluation.results import BEFORE, EvaluationResult, evaluation_stage
from toolkit.evaluation.stage_context import Context, DataAndImages
from toolkit.evaluation.trackers import NO_TRACKERS, Trackers, tracking
from toolkit.exporting.exported import damaged_exports
from toolkit.exporting.results import ExportResult
from toolkit.models.llamacpp import formats_of, require_for
from toolkit.pipeline.image_files import has_touched_images
from toolkit.pipeline.prepare_data import fingerprint_rewards
from toolkit.pipeline.run_results import RunResults, collect_results, evaluations, write_results
from toolkit.pipeline.tracked_results import track_evaluation
from toolkit.recipe import Recipe
from toolkit.runfolder import (
    EXPORT,
    TRAINING_STAGES,
    Progress,
    Record,
    RunFolder,
    StopRequest,
    current_weights,
    find_run,
    format_duration,
    is_main_process,
    no_progress,
    read_state,
    start_run,
    world_size,
    write_json,
)
from toolkit.runfolder.manifest import check_weights
from toolkit.runfolder.usage import Recorder, recording
from toolkit.training.results import DpoResult, GrpoResult, SftResult

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)

DATA = "data"
"""Name of reading the rows and scanning the images in the compute report."""

Prepare = Callable[[Recipe, RunFolder, Progress], DataAndImages]
"""Validates the rows and images of a recipe. Raises DataError, ImageError, or RunError if they changed."""


class EvaluateStage(Protocol):
    """Evaluates weights on the held-out split."""

    def __call__(self, context: Context, name: str, weights: Path | None, earlier: Sequence[str]) -> EvaluationResult:
        """Evaluate ``weights`` (None: the base model) as evaluation ``name``, compared with ``earlier`` ones."""


class ExportStage(Protocol):
    """Exports weights and verifies that they give the same completions."""

    def __call__(self, context: Context, *, out: Path | None = None, force: bool = False) -> ExportResult:
        """Export ``context.weights`` to ``out``, by default the stage's folder. Raises ModelError or RunError.

        ``force``: rename a foreign folder in ``out`` instead of raising an error.
        """


@dataclass(frozen=True, slots=True)
class Stages:
    """The functions that do the work. Tests pass others.

    Attributes:
        prepare: validates rows and images, and saves the result.
        look: returns the rows and images of a prepared run and writes nothing, for processes that only train.
        sft: trains with SFT. Raises Interrupted, ModelError or TrainingError.
        dpo: trains with DPO. Raises the same errors.
        grpo: trains with GRPO. Raises the same errors.
        evaluate: evaluates weights on the held-out split.
        export: exports and verifies weights.
    """

    prepare: Prepare
    look: Callable[[Recipe, RunFolder], DataAndImages]
    sft: Callable[[Context], SftResult]
    dpo: Callable[[Context], DpoResult]
    grpo: Callable[[Context], GrpoResult]
    evaluate: EvaluateStage
    export: ExportStage


Result = TypeVar("Result", bound="DataclassInstance")


@dataclass(frozen=True, slots=True)
class StageCall(Generic[Result]):
    """One stage of a run.

    Attributes:
        name: the name of the stage and of its folder.
        work: does the work and returns the result of the stage.
    """

    name: str
    work: Callable[[Context], Result]


def run_recipe(
    recipe: Recipe,
    stages: Stages,
    *,
    fresh: bool = False,
    plan: Record | None = None,
    progress: Progress = no_progress,
    notify: Callable[[int], None] = lambda number: None,
) -> RunResults:
    """Run every stage of a recipe that has not finished.

    Args:
        recipe: the recipe of the run.
        stages: the functions that do the work.
        fresh: start again. An old run of this name is renamed.
        plan: what the run is expected to need, saved as plan.json. None: plan.json stays as it is.
        progress: called with the progress of each stage.
        notify: called with the number of the signal that requests a stop, inside the signal handler.

    Returns:
        The table of results.

    Raises:
        ToolkitError: a stage failed. Interrupted after a signal, with the state saved.
    """
    if not is_main_process():
        return train_as_worker(recipe, stages)
    with start_run(recipe, fresh=fresh) as run, StopRequest(notify) as stop:
        if plan is not None:
            write_json(run.plan_file, plan, private=True)
        calls = {call.name: call for call in stage_calls(recipe, stages)}
        check_trained_weights(run)
        unfinished = unfinished_stages(calls, lambda stage: _is_finished(stage, run, recipe))
        if EXPORT in unfinished:
            require_export(recipe)
        with recording(run, recipe.run, "run") as recorder:
            # Without this, a finished run would return its results as those of other data.
            if unfinished or has_other_inputs(run, recipe):
                with recorder.stage(DATA):
                    data, images = stages.prepare(recipe, run, stopping(stop, progress))
                context = Context(recipe, run, data, images, stop, progress)
            wait_for_all()  # from here on the other processes read which stages are unfinished
            # After the data, so that Unsloth is imported before a tracker imports other libraries.
            with tracking(recipe.run.report_to if unfinished else (), run) as trackers:
                for name in unfinished:
                    stop.check(f"{name} has not begun, and the stages before it are finished")
                    run_stage(calls[name], context, recorder, trackers)
        results = write_results(run)
        write_report(run)
        return results


def write_report(run: RunFolder) -> None:
    """Write report.html. It is imported here, because a run that stops earlier needs no plots."""
    from toolkit.reporting.report import write_run_report

    write_run_report(run)


def train_as_worker(recipe: Recipe, stages: Stages) -> RunResults:
    """Train with the main process of `accelerate launch`, and write nothing.

    Raises:
        ToolkitError: as in ``run_recipe``.
    """
    wait_for_all()
    run = find_run(recipe.run_folder)
    with StopRequest() as stop:
        unfinished = [name for name in _training_stages(recipe) if not run.is_done(name)]
        if unfinished:
            data, images = stages.look(recipe, run)
            context = Context(recipe, run, data, images, stop)
            for name in unfinished:
                wait_for_all()  # the main process starts the stage
                getattr(stages, name)(context)
                wait_for_all()  # the main process has written the result that the next stage reads
    return collect_results(run)


def wait_for_all() -> None:
    """Wait for the other processes of the run. Imports no model library if there is only one process."""
    if world_size() > 1:
        from toolkit.training.distributed import wait_for_all as wait

        wait()


def stage_calls(recipe: Recipe, stages: Stages) -> list[StageCall[Any]]:
    """Return the stages of a recipe in order.

    The model is evaluated before training and after each training stage, and exported at the end.
    """
    trained = _training_stages(recipe)
    calls: list[StageCall[Any]] = []
    if recipe.evaluate and (recipe.evaluate.before or not trained):
        calls.append(evaluation_call(BEFORE, stages.evaluate))
    for name in trained:
        calls.append(StageCall(name, getattr(stages, name)))
        if recipe.evaluate:
            calls.append(evaluation_call(name, stages.evaluate))
    if recipe.export:
        calls.append(StageCall(EXPORT, stages.export))
    return calls


def evaluation_call(name: str, evaluate: EvaluateStage) -> StageCall[EvaluationResult]:
    """Return the evaluation of the newest weights, compared with the run's earlier evaluations."""

    def work(context: Context) -> EvaluationResult:
        earlier = [other for other in evaluations(context.run) if other != name]
        return evaluate(context, name, context.weights, earlier)

    return StageCall(evaluation_stage(name), work)


def run_stage(
    call: StageCall[Result], context: Context, recorder: Recorder, trackers: Trackers = NO_TRACKERS
) -> Result:
    """Run one stage, save its result, update results.json, and send the results of an evaluation to the trackers."""
    trains = call.name in TRAINING_STAGES
    with logged(call.name):
        if call.name == EXPORT:
            # The model card is written from results.json, which a crash may have left outdated.
            write_results(context.run)
        with recorder.stage(call.name):
            if trains:
                wait_for_all()
            result = call.work(context)
            context.run.mark_done(call.name, result)
            if trains:
                wait_for_all()
        results = write_results(context.run)
        if isinstance(result, EvaluationResult):
            name = call.name.removeprefix(evaluation_stage(""))
            track_evaluation(trackers, context, name, results.evaluations)
    return result


@contextmanager
def logged(stage: str) -> Iterator[None]:
    """Log the begin of a stage, and its duration if it finishes."""
    log.info("%s begins", stage)
    started = time.monotonic()
    yield
    log.info("%s is finished (%s)", stage, format_duration(time.monotonic() - started))


def unfinished_stages(stages: Iterable[str], is_finished: Callable[[str], bool]) -> list[str]:
    """Return the stages that have not finished, and log the others."""
    unfinished = []
    for stage in stages:
        if is_finished(stage):
            log.info("%s: finished before, skipped", stage)
        else:
            unfinished.append(stage)
    return unfinished


def stopping(stop: StopRequest, progress: Progress) -> Progress:
    """Return a progress callback that raises Interrupted after a signal.

    It is for work before the first stage, which saves nothing.
    """

    def report(what: str, done: int, total: int, note: str = "") -> None:
        stop.check("no stage had begun")
        progress(what, done, total, note)

    return report


def require_export(recipe: Recipe) -> None:
    """Check before training that this machine can write the formats of the recipe.

    Raises:
        MissingExtraError: a package is not installed.
    """
    section = recipe.export
    if section and "gguf" in section.to:
        require_for(section.quant, verify=section.verify > 0)


def _is_finished(stage: str, run: RunFolder, recipe: Recipe) -> bool:
    """Return whether a stage does not have to run again.

    `toolkit export` may have exported other formats, earlier weights, or without verification. An export counts if it
    has the recipe's formats of the last weights, verified if the recipe requires it.
    """
    if stage.startswith(evaluation_stage("")) and run.is_done(stage):
        _warn_of_other_metrics(stage, run, recipe)
    if stage != EXPORT or recipe.export is None or not run.is_done(EXPORT):
        return run.is_done(stage)
    found, trained = run.result(EXPORT, ExportResult), _training_stages(recipe)
    last = run.weights_folder(trained[-1]) if trained else current_weights(run, recipe)
    wanted = [name for name in formats_of(recipe.export) if name not in found.skipped]
    if last is None or found.weights != run.relative(last) or not set(wanted) <= set(found.requested):
        return False
    written = [found.formats[name] for name in wanted if name in found.formats]  # full fine-tuning has no adapter
    if recipe.export.verify and not all(one.verification for one in written):
        return False
    if _has_damage(run, found, wanted):
        return False
    return "gguf" not in wanted or (found.gguf is not None and set(recipe.export.quant) <= set(found.gguf.files))


def has_other_metrics(result: EvaluationResult, recipe: Recipe) -> bool:
    """Return whether the code of the custom metrics is not the one that computed the scores of a result."""
    entries = recipe.evaluation.metrics
    return bool(entries) and result.metrics_code != code_digest(entries)


def _warn_of_other_metrics(stage: str, run: RunFolder, recipe: Recipe) -> None:
    if has_other_metrics(run.result(stage, EvaluationResult), recipe):
        rule = "the custom metrics have other code than in this finished evaluation. Its scores stay as they are"
        remedy = f"toolkit evaluate {run.path} evaluates the last weights with the new code."
        warn("evaluate.metrics_changed", rule, place=stage, remedy=remedy)


def check_trained_weights(run: RunFolder) -> None:
    """Check that the run's last trained weights are as they were written. Raises RunError."""
    weights = run.trained_weights()
    if weights is not None:
        check_weights(weights, own=True)


def _has_damage(run: RunFolder, result: ExportResult, wanted: Sequence[str]) -> bool:
    """Return whether a wanted format is missing or changed, so that it is exported again. Warn about each format."""
    damaged = damaged_exports(run, result)
    for name, damage in damaged.items():
        again = "It is exported again" if name in wanted else f"Export it again: toolkit export {run.path} --to {name}"
        rule = f"the export {name} should be as the run wrote it"
        warn("export.damaged", rule, place=damage.file, value=damage.reason, remedy=f"{again}.")
    return any(name in wanted for name in damaged)


def has_other_inputs(run: RunFolder, recipe: Recipe) -> bool:
    """Return whether ``prepare`` must compare the inputs of a finished run: one of them is not as it was."""
    if not run.is_done(DATA):
        return False
    rewards = read_state(run).fingerprints.get("rewards")
    if rewards is not None and recipe.rewards.custom and rewards != fingerprint_rewards(recipe):
        return True
    return run.result(DATA, DataResult).has_other_sources(recipe) or has_touched_images(run)


def _training_stages(recipe: Recipe) -> list[str]:
    return [name for name in TRAINING_STAGES if getattr(recipe, name) is not None]
