"""What SFT and GRPO share: resume from the last whole checkpoint, stop between steps, weights by a rename."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from toolkit.backends import Backend, together
from toolkit.backends.base import Policy
from toolkit.backends.callbacks import PARTIAL, Checkpoints, Report, StopBetweenSteps, checkpoints, is_whole
from toolkit.backends.ladder.advice import nothing_left
from toolkit.compute import begin_peak, gpu_peaks
from toolkit.errors import TrainingError
from toolkit.run import Record, flush_folder, is_main, read_json
from toolkit.stages.context import Context
from toolkit.stages.lengths import Lengths
from toolkit.stages.step_time import StepTimes, step_times
from toolkit.tasks import TASKS
from toolkit.tasks.loading import SampleSet
from toolkit.tasks.loading.sampling import balance

log = logging.getLogger(__name__)


def training_rows(context: Context, stage: str) -> SampleSet:
    """The training rows, drawn as ``data.sampling`` says, which is told."""
    samples, task = context.data.train, TASKS[context.recipe.data.task]
    if context.recipe.data.sampling == "natural" or task.stratum is None:
        return samples
    balanced, counts = balance(samples, task.stratum, context.recipe.run.seed)
    told = ", ".join(f"{name} {draws:,} draws of {rows:,} rows" for name, (rows, draws) in counts.items())
    log.info("%s: balanced sampling: %s", stage, told)
    return balanced


def training_callbacks(context: Context, stage: str) -> list[Any]:
    """Progress, whole checkpoints, and the stop on a signal."""
    folder = context.run.stage_folder(stage)

    def report(step: int, steps: int, figures: Any) -> None:
        context.report(stage, step, steps, figures)

    return [
        Report(report),
        StopBetweenSteps(context.stop),
        Checkpoints(folder, context.recipe.run.keep_checkpoints),
        StepTimes(context, stage),
    ]


@contextmanager
def tracked(context: Context, stage: str) -> Iterator[None]:
    """Build and run a trainer inside: TensorBoard's files go to the stage's folder, unless the user chose another.

    Left to itself transformers puts them among the checkpoints that are being written.
    """
    name = "TENSORBOARD_LOGGING_DIR"
    before = os.environ.get(name)
    os.environ.setdefault(name, str(context.run.stage_folder(stage) / "tensorboard"))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def train(backend: Backend, policy: Policy, trainer: Any, context: Context, stage: str) -> Record:
    """Train to the end, from the last complete checkpoint if there is one, and give the stage's figures.

    Raises:
        Interrupted: a signal came; the step was finished and saved.
        TrainingError: the loss became NaN or infinite, or the rows ran out.
    """
    folder = context.run.stage_folder(stage)
    if is_main() and (folder / PARTIAL).exists():
        shutil.rmtree(folder / PARTIAL)  # what an interruption left half written; nothing is resumed from it
    together.meet()
    start = last_checkpoint(folder)
    if start:
        log.info("%s goes on from %s", stage, start.name)
        state = read_json(start / "trainer_state.json")
        finished = state["global_step"] >= state["max_steps"]
        if finished or context.recipe.model.tuning == "full":
            backend.restore(policy, start)  # transformers looks for other names than it saved, and goes on without
        if finished:  # only the weights were still to be written; transformers would train one step more
            return {"steps": state["max_steps"], "seconds": 0.0, "resumed_from": start.name}
    begun = time.monotonic()
    begin_peak()
    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    except torch.OutOfMemoryError as error:  # outside of a pass: the optimiser's state, for one
        raise nothing_left(f"step {trainer.state.global_step + 1}", "parts of a step", trainer.advice) from error
    step, steps = trainer.state.global_step, trainer.state.max_steps
    if step < steps:
        context.stop.check(f"{stage} is saved after step {step} of {steps}")
        raise TrainingError(
            "training must reach its last step",
            place=stage,
            value=f"ended after step {step} of {steps}",
            remedy="There are too few rows for a step: lower batch_size or prompts_per_step, or give more rows.",
        )
    together.meet()
    if is_main():
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    return {
        "steps": steps,
        "seconds": round(time.monotonic() - begun, 1),
        "resumed_from": start.name if start else None,
        "memory": _memory_record(trainer, context, stage),
        "seconds_per_step": step_times(trainer).record(),
    }


def rows_to_probe(lengths: Lengths, wanted: bool | None) -> tuple[int, ...]:
    """The rows for a probe step, the longest first; empty where none is ``wanted`` (None: it is on a GPU)."""
    return lengths.longest if (torch.cuda.is_available() if wanted is None else wanted) else ()


def _memory_record(trainer: Any, context: Context, stage: str) -> Record:
    """Peaks of this start, and what was too much for the memory in all starts of the stage."""
    lines = [line for line in context.run.metrics() if line["stage"] == stage]
    return {
        **gpu_peaks(),
        "out_of_memory": int(sum(line.get("out_of_memory", 0) for line in lines)),
        "micro_batch": trainer.passes.of(trainer.args.per_device_train_batch_size),
        "probe": trainer.probe,
    }


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a stage; a damaged one is told and left out."""
    for checkpoint in reversed(checkpoints(folder)):
        if is_whole(checkpoint):
            return checkpoint
        log.warning("%s: files are missing or damaged, so it is not gone on from", checkpoint)
    return None


def save_weights(backend: Backend, policy: Policy, target: Path) -> None:
    """Write the weights beside their place, then rename; the first process does, and the others wait."""
    if is_main():
        _write_weights(backend, policy, target)
    together.meet()


def _write_weights(backend: Backend, policy: Policy, target: Path) -> None:
    partial = target.with_name(f"{target.name}.partial")
    for old in (partial, target):
        if old.exists():
            shutil.rmtree(old)
    backend.save(policy, partial)
    flush_folder(partial)
    partial.replace(target)
