"""The stages of a recipe in order, with resume: what is finished is skipped, what is not goes on."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from toolkit.evaluation.context import Context, DataAndImages, EvaluateStage, ExportStage, TrainStage
from toolkit.models.llamacpp import forms_of, require_for
from toolkit.pipeline.results import EVALUATE, Results, evaluations, read_results, write_results
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
    start_run,
    world_size,
    write_json,
)
from toolkit.runfolder.usage import Recorder, recording

log = logging.getLogger(__name__)

DATA = "data"
"""What the compute report calls the reading of rows and the scan of pictures."""


def meet() -> None:
    """Wait for the other processes of the run, if there are any; loads no model library where there is one alone."""
    if world_size() > 1:
        from toolkit.models.distributed import meet as wait

        wait()


Prepare = Callable[[Recipe, RunFolder, Progress], DataAndImages]
"""Rows and pictures of a recipe, checked; raises DataError, ImageError, or RunError if they changed."""


@dataclass(frozen=True, slots=True)
class Stages:
    """The functions that do the work; tests pass others."""

    prepare: Prepare
    look: Callable[[Recipe, RunFolder], DataAndImages]
    """The same rows and pictures once they are prepared, for the processes that only train: nothing is written."""
    sft: TrainStage
    grpo: TrainStage
    evaluate: EvaluateStage
    export: ExportStage


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of a run's plan; ``name`` is the stage's folder."""

    name: str
    work: Callable[[Context], Mapping[str, object]]


def run_recipe(
    recipe: Recipe,
    stages: Stages,
    *,
    fresh: bool = False,
    plan: Record | None = None,
    progress: Progress = no_progress,
    notify: Callable[[int], None] = lambda number: None,
) -> Results:
    """Run every stage of the recipe that has not finished, and give the table of results.

    Args:
        recipe: what to do.
        stages: who does it.
        fresh: begin anew; an old run of this name is moved aside.
        plan: what the run is expected to need, kept as plan.json; None: nothing new.
        progress: told how far a stage has come.
        notify: told the number of the signal that asks the run to stop, inside the signal's handler.

    Raises:
        ToolkitError: whatever ends the run; Interrupted after a signal, with the state saved.
    """
    if not is_main_process():
        return train_beside(recipe, stages)
    with start_run(recipe, fresh=fresh) as run, StopRequest(notify) as stop:
        if plan is not None:
            write_json(run.plan_file, plan)
        steps = plan_steps(recipe, stages)
        open_steps = [step for step in steps if not _is_finished(step, run, recipe)]
        for step in steps:
            if step not in open_steps:
                log.info("%s: finished before, skipped", step.name)
        if any(step.name == EXPORT for step in open_steps):
            require_export(recipe)
        with recording(run, recipe.run, "run") as recorder:
            if open_steps:
                with recorder.stage(DATA):
                    data, images = stages.prepare(recipe, run, stopping(stop, progress))
                context = Context(recipe, run, data, images, stop, progress)
            meet()  # the other processes see from here on what is open
            for step in open_steps:
                stop.check(f"{step.name} has not begun, and what came before is finished")
                run_step(step, context, recorder)
        return write_results(run)


def train_beside(recipe: Recipe, stages: Stages) -> Results:
    """What the other processes of `accelerate launch` do: train where the first one trains, and write nothing.

    Raises:
        ToolkitError: as ``run_recipe``.
    """
    meet()
    run = find_run(recipe.run_folder)
    with StopRequest() as stop:
        open_stages = [name for name in _training_stages(recipe) if not run.is_done(name)]
        if open_stages:
            data, images = stages.look(recipe, run)
            context = Context(recipe, run, data, images, stop)
            for name in open_stages:
                meet()  # with the first process, where it begins the stage
                getattr(stages, name)(context)
                meet()  # and where its record is written, which the next stage goes on from
    return read_results(run)


def _is_finished(step: Step, run: RunFolder, recipe: Recipe) -> bool:
    """Whether a step needs nothing more.

    `toolkit export` may have exported between two stages, in other forms, or unverified: an export counts if it holds
    the forms of the recipe, made from the last weights that the run leaves, and proven where the recipe says so.
    """
    if step.name != EXPORT or recipe.export is None or not run.is_done(EXPORT):
        return run.is_done(step.name)
    record, trained = run.record(EXPORT), _training_stages(recipe)
    last = run.weights_folder(trained[-1]) if trained else current_weights(run, recipe)
    made_from_last = last is not None and record["weights"] == run.relative(last)
    wanted = [form for form in forms_of(recipe.export) if form not in record.get("left_out", ())]
    forms = made_from_last and set(wanted) <= set(record["asked"])
    written = [record[form] for form in wanted if form in record]  # full fine-tuning leaves no adapter
    forms = forms and (not recipe.export.verify or all(form["questions"] for form in written))
    return forms and ("gguf" not in wanted or set(recipe.export.quant) <= set(record["gguf"]["files"]))


def require_export(recipe: Recipe) -> None:
    """See that what the recipe exports can be written here, before anything is trained.

    Raises:
        MissingExtraError: it cannot.
    """
    section = recipe.export
    if section and "gguf" in section.to:
        require_for(section.quant, verify=section.verify > 0)


def _training_stages(recipe: Recipe) -> list[str]:
    return [name for name in TRAINING_STAGES if getattr(recipe, name) is not None]


def stopping(stop: StopRequest, progress: Progress) -> Progress:
    """Progress that raises Interrupted once a signal has come: for work before the first stage, which saves nothing."""

    def tell(what: str, done: int, total: int, note: str = "") -> None:
        stop.check("no stage had begun")
        progress(what, done, total, note)

    return tell


def plan_steps(recipe: Recipe, stages: Stages) -> list[Step]:
    """Evaluate, then train and evaluate again for each training stage, then export; only what the recipe has."""
    trained, steps = _training_stages(recipe), []
    if recipe.evaluate and (recipe.evaluate.before or not trained):
        steps.append(evaluation_step("before", stages.evaluate))
    for name in trained:
        steps.append(Step(name, getattr(stages, name)))
        if recipe.evaluate:
            steps.append(evaluation_step(name, stages.evaluate))
    if recipe.export:
        steps.append(Step(EXPORT, stages.export))
    return steps


def evaluation_step(name: str, evaluate: EvaluateStage) -> Step:
    """The evaluation ``name`` of the newest weights, compared with those that finished before it."""

    def work(context: Context) -> Mapping[str, object]:
        earlier = [other for other in evaluations(context.run) if other != name]
        return evaluate(context, name, context.weights, earlier)

    return Step(EVALUATE + name, work)


def run_step(step: Step, context: Context, recorder: Recorder) -> Record:
    """Do one step, keep its record, bring results.json up to date."""
    log.info("%s begins", step.name)
    started = time.monotonic()
    trains = step.name in TRAINING_STAGES
    if step.name == EXPORT:
        write_results(context.run)  # a model card is written from it: a crash or a hand may have left another
    with recorder.stage(step.name):
        if trains:
            meet()
        record = step.work(context)
        context.run.mark_done(step.name, record)
        if trains:
            meet()
    write_results(context.run)
    log.info("%s is finished (%s)", step.name, format_duration(time.monotonic() - started))
    return context.run.record(step.name)
