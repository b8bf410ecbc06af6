"""A recipe with [imagegen]: its stages in order with resume, results.json, and the push of a LoRA to the Hub."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import RunError
from toolkit.evaluation.trackers import tracking
from toolkit.pipeline.run import logged, unfinished_stages, write_report
from toolkit.recipe import Recipe
from toolkit.reporting.gpu_peaks import GpuPeak, gpu_peaks
from toolkit.runfolder import (
    SCHEMA_VERSION,
    Progress,
    Record,
    RunFolder,
    StopRequest,
    no_progress,
    read_state,
    start_run,
    world_size,
    write_json,
)
from toolkit.runfolder.usage import ComputeSummary, recording, summarise_compute

if TYPE_CHECKING:  # they import torch
    from toolkit.exporting.push import Push
    from toolkit.imagegen.results import ImagegenResult


@dataclass(frozen=True, slots=True)
class ImagegenRunResults:
    """The content of results.json.

    Attributes:
        schema_version: ``SCHEMA_VERSION``.
        name: the name of the run.
        seed: the seed of the run.
        fingerprints: input (``ratings``) -> digest of its content.
        imagegen: the table, and the results of the stages.
        compute: usage of all sessions. None: nothing was recorded.
        gpu_memory: stage -> planned and measured peak.
    """

    schema_version: int
    name: str
    seed: int
    fingerprints: Mapping[str, str]
    imagegen: "ImagegenResult"
    compute: ComputeSummary | None
    gpu_memory: Mapping[str, GpuPeak]


@dataclass(frozen=True, slots=True)
class PushedLora:
    """Whose LoRA was pushed, its licence, and the address of the commit."""

    method: str
    licence: str
    url: str


def run_imagegen(
    recipe: Recipe,
    *,
    fresh: bool = False,
    plan: Record | None = None,
    progress: Progress = no_progress,
    notify: Callable[[int], None] = lambda number: None,
) -> "tuple[RunFolder, ImagegenResult]":
    """Run every stage that has not finished, and return the run folder and the results.

    Args:
        recipe: a recipe with [imagegen].
        fresh: start again. An old run of this name is moved aside.
        plan: the plan to store as plan.json. None: an existing plan is not replaced.
        progress: called after each epoch and round.
        notify: called with the number of the signal that requests a stop.

    Raises:
        ToolkitError: a stage failed. Interrupted after a signal, with the state saved.
    """
    _require_one_process()
    from toolkit.imagegen.context import StageContext
    from toolkit.imagegen.lora_card import required_licence
    from toolkit.imagegen.seeds import imagegen_of
    from toolkit.imagegen.stages import RunSession, check_finished, run_stage

    # Before the run folder exists, so that naming the licence is no change of a run's recipe.
    required_licence(imagegen_of(recipe))
    with start_run(recipe, fresh=fresh) as run, StopRequest(notify) as stop:
        if plan is not None:
            write_json(run.plan_file, plan, private=True)
        with recording(run, recipe.run, "run") as recorder, tracking(recipe.run.report_to, run) as trackers:
            session = RunSession(StageContext(recipe, run, stop, progress, trackers))
            check_finished(run)
            for name in unfinished_stages(imagegen_of(recipe).stages, run.is_done):
                stop.check(f"{name} has not begun, and the stages before it are finished")
                with logged(name):
                    with recorder.stage(name):
                        run_stage(session, name)
                    write_imagegen_results(run, recipe)
        results = write_imagegen_results(run, recipe)
        write_report(run)
        return run, results


def push_generator(path: Path, push: "Push", method: str | None = None) -> PushedLora:
    """Push the LoRA of a finished run. It is private unless the push says otherwise.

    Args:
        path: the run folder.
        push: where to, and how.
        method: sft or ddpo. None: the one with the highest judge score.

    Raises:
        ModelError: the generator is no Stable Diffusion model, or a file is missing, changed or unknown.
        RunError: the method has not finished, or the Hub rejects the upload.
        RecipeError: the run is one of a vision-language model.
    """
    from toolkit.exporting.push import check_push, upload

    check_push(push)
    from toolkit.imagegen.generate import open_finished
    from toolkit.imagegen.lora_card import check_lora_folder, required_licence
    from toolkit.imagegen.results import BASE

    finished = open_finished(path, "toolkit export --push")
    if method == BASE:
        rule, remedy = "the method must have a LoRA", "Choose --method sft or ddpo."
        raise RunError("imagegen.base_not_pushable", rule, place="--method", value=method, remedy=remedy)
    chosen = finished.best_method() if method is None else finished.require(method)
    folder = check_lora_folder(finished.run, finished.section, chosen)
    licence = required_licence(finished.section)
    url = upload(folder, f"LoRA of {chosen}, with its model card and licence", push)
    return PushedLora(chosen, "" if licence is None else licence.name, url)


def write_imagegen_results(run: RunFolder, recipe: Recipe) -> "ImagegenResult":
    """Write results.json from the finished stages, and return the results."""
    from toolkit.imagegen.results import read_result
    from toolkit.imagegen.settings import bootstrap_of

    state, result = read_state(run), read_result(run, bootstrap_of(recipe))
    content = ImagegenRunResults(
        schema_version=SCHEMA_VERSION,
        name=run.name,
        seed=state.seed,
        fingerprints=state.fingerprints,
        imagegen=result,
        compute=summarise_compute(run.compute_file),
        gpu_memory=gpu_peaks(run),
    )
    write_json(run.results_file, content)
    return result


def _require_one_process() -> None:
    if world_size() > 1:
        raise RunError(
            "imagegen.several_processes",
            "the number of processes must be 1 for image generation",
            place="accelerate launch",
            value=world_size(),
            remedy="Start it with toolkit run.",
        )
