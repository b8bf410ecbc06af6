"""A recipe with [imagegen]: its stages in order with resume, and results.json."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from toolkit.errors import RunError
from toolkit.pipeline.gpu_peaks import gpu_peaks
from toolkit.recipe import Recipe
from toolkit.runfolder import (
    SCHEMA_VERSION,
    Progress,
    Record,
    RunFolder,
    StopRequest,
    format_duration,
    no_progress,
    read_state,
    start_run,
    world_size,
    write_json,
)
from toolkit.runfolder.usage import recording, summarise_compute

if TYPE_CHECKING:  # imagegen imports torch
    from toolkit.imagegen.results import ImagegenResult

log = logging.getLogger(__name__)


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
        plan: what the run is expected to need, kept as plan.json. None: nothing new.
        progress: called after each epoch and round.
        notify: called with the number of the signal that requests a stop.

    Raises:
        ToolkitError: what ends the run. Interrupted after a signal, with the state saved.
    """
    _require_one_process()
    from toolkit.imagegen.context import StageContext, tracking
    from toolkit.imagegen.lora_card import required_licence
    from toolkit.imagegen.seeds import imagegen_of
    from toolkit.imagegen.stages import RunSession, run_stage

    # Before the run folder exists, so that naming the licence is no change of a run's recipe.
    required_licence(imagegen_of(recipe))
    with start_run(recipe, fresh=fresh) as run, StopRequest(notify) as stop:
        if plan is not None:
            write_json(run.plan_file, plan)
        with recording(run, recipe.run, "run") as recorder, tracking(recipe.run, run) as trackers:
            session = RunSession(StageContext(recipe, run, stop, progress, trackers))
            for name in imagegen_of(recipe).stages:
                if run.is_done(name):
                    log.info("%s: finished before, skipped", name)
                    continue
                stop.check(f"{name} has not begun, and the stages before it are finished")
                log.info("%s begins", name)
                started = time.monotonic()
                with recorder.stage(name):
                    run_stage(session, name)
                write_imagegen_results(run, recipe)
                log.info("%s is finished (%s)", name, format_duration(time.monotonic() - started))
        return run, write_imagegen_results(run, recipe)


def _require_one_process() -> None:
    if world_size() > 1:
        raise RunError(
            "imagegen.several_processes",
            "the number of processes must be 1 for image generation",
            place="accelerate launch",
            value=world_size(),
            remedy="Start it with toolkit run.",
        )


def write_imagegen_results(run: RunFolder, recipe: Recipe) -> "ImagegenResult":
    """Write results.json from the finished stages, and return the results."""
    from toolkit.imagegen.results import read_result
    from toolkit.imagegen.settings import bootstrap_of

    result = read_result(run, bootstrap_of(recipe))
    state = read_state(run)
    write_json(
        run.results_file,
        {
            "schema_version": SCHEMA_VERSION,
            "name": run.name,
            "seed": state.seed,
            "fingerprints": state.fingerprints,
            "imagegen": result,
            "compute": summarise_compute(run.compute_file),
            "gpu_memory": gpu_peaks(run),
        },
    )
    return result
