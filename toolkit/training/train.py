"""The training loop that SFT and GRPO share: preflight step, OOM recovery, resume, and saving of the weights."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from toolkit.data.loading import SampleSet
from toolkit.data.sample_set import balance
from toolkit.errors import TrainingError, warn
from toolkit.evaluation.context import Context
from toolkit.models import Backend, distributed
from toolkit.models.backend import Policy, TrainingJob
from toolkit.models.lengths import Lengths
from toolkit.models.oom import attempt, free
from toolkit.runfolder import Record, flush_folder, is_main_process, read_json, world_size
from toolkit.runfolder.usage import begin_peak, gpu_peaks
from toolkit.tasks import TASKS
from toolkit.training.callbacks import (
    PARTIAL,
    Checkpoints,
    LastStep,
    MetricsReporter,
    StopBetweenSteps,
    checkpoints,
    is_complete,
)
from toolkit.training.oom_recovery import Recovery
from toolkit.training.preflight import preflight_job, run_preflight_step
from toolkit.training.step_time import StepTimes

log = logging.getLogger(__name__)


def training_rows(context: Context, stage: str) -> SampleSet:
    """Return the training rows, drawn as ``data.sampling`` requests. The log has the counts of balanced sampling."""
    samples, task = context.data.train, TASKS[context.recipe.dataset.task]
    if context.recipe.dataset.sampling == "natural" or task.stratum is None:
        return samples
    balanced, counts = balance(samples, task.stratum, context.recipe.run.seed)
    listed = ", ".join(f"{name} {draws:,} draws of {rows:,} rows" for name, (rows, draws) in counts.items())
    log.info("%s: balanced sampling: %s", stage, listed)
    return balanced


def training_callbacks(
    context: Context, stage: str, notes: Callable[[], Mapping[str, float]] = dict[str, float]
) -> list[Any]:
    """Return the callbacks for metrics, checkpoints, and the stop on a signal.

    Args:
        context: The run.
        stage: Name of the stage.
        notes: Returns metrics to add to the next line of the log.
    """
    folder = context.run.stage_folder(stage)

    def report(step: int, steps: int, metrics: Any) -> None:
        context.report(stage, step, steps, metrics)

    return [
        MetricsReporter(report, notes),
        StopBetweenSteps(context.stop),
        Checkpoints(folder, context.recipe.run.keep_checkpoints),
    ]


@contextmanager
def _tensorboard_folder(context: Context, stage: str) -> Iterator[None]:
    """Write TensorBoard's files of a trainer built inside to the stage's folder, unless the user chose another one.

    The default of transformers is a folder among the unfinished checkpoints.
    """
    name = "TENSORBOARD_LOGGING_DIR"
    before = os.environ.get(name)
    os.environ.setdefault(name, str(context.run.stage_folder(stage) / "tensorboard"))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


Prepare = Callable[[Policy], tuple[TrainingJob, Record]]
"""Makes the checks before the first step on a newly loaded policy. Returns the job, and entries for the record."""
Build = Callable[[Backend, Policy, TrainingJob], Any]
"""Builds the trainer of a stage."""


def train(context: Context, stage: str, backend: Backend, prepare: Prepare, build: Build) -> Record:
    """Train to the end, save the weights, and return the stage's record.

    Training resumes from the last complete checkpoint. After an out-of-memory error it continues with smaller sizes.
    See ``oom_recovery``.

    Raises:
        Interrupted: A signal came. The optimizer step was finished and saved.
        TrainingError: The loss became NaN or infinite, the rows ran out, or one row does not fit the GPU.
    """
    folder = context.run.stage_folder(stage)
    if is_main_process() and (folder / PARTIAL).exists():
        shutil.rmtree(folder / PARTIAL)  # an incomplete checkpoint of an interrupted start, which nothing resumes from
    distributed.wait_for_all()
    holder = _PolicyHolder(partial(backend.load, context.recipe, context.weights, trainable=True))
    job, facts = prepare(holder.policy)
    start = last_checkpoint(folder)
    if start and _is_finished(start):
        # The interruption came after the last step, before the weights were written. A trainer that resumes here would
        # make one step too many.
        backend.restore(holder.policy, start)
        record = _finished_record(context, stage, start)
    else:
        with _tensorboard_folder(context, stage):
            record = _train(context, stage, backend, holder, job, build)
    save_weights(backend, holder.policy, context.run.weights_folder(stage))
    return {**record, **facts}


class _PolicyHolder:
    """The only reference to the policy, so that it can be freed before it is loaded again. Two do not fit a GPU."""

    def __init__(self, load: Callable[[], Policy]) -> None:
        self._load, self._policy = load, load()

    @property
    def policy(self) -> Policy:
        return self._policy

    def reload(self) -> None:
        """Free the policy and load it again."""
        del self._policy
        free()
        self._policy = self._load()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How the work of one trainer ended.

    Attributes:
        step: The last finished optimizer step.
        steps: The optimizer steps of the stage.
        fits: Whether training ended without an out-of-memory error.
        complete: Whether the parameters are those of the last finished step.
    """

    step: int
    steps: int
    fits: bool
    complete: bool


def _finished_record(context: Context, stage: str, last: Path) -> Record:
    """Return the record of a stage that was interrupted after its last step, before its weights were written."""
    unmeasured = dict.fromkeys(gpu_peaks())
    return {
        "steps": _step_of(last),
        "seconds": 0.0,
        "seconds_per_step": StepTimes(context, stage).record(),
        "skipped_steps": _logged(context, stage, "skipped_steps"),
        "resumed_from": last.name,
        "gpu_memory": {
            **unmeasured,
            **Recovery(context.run.stage_folder(stage), context.recipe, stage).to_record(),
            "preflight": None,
        },
    }


def _train(
    context: Context, stage: str, backend: Backend, holder: _PolicyHolder, job: TrainingJob, build: Build
) -> Record:
    """Make the preflight step, then build one trainer after another until one reaches the end."""
    folder, recovery = context.run.stage_folder(stage), Recovery(context.run.stage_folder(stage), context.recipe, stage)
    plan = read_json(context.run.plan_file) if context.run.plan_file.is_file() else None
    resumed, begun = last_checkpoint(folder), time.monotonic()
    _remove_later_metrics(context, stage, _step_of(resumed), recovery)
    times = StepTimes(context, stage)
    callbacks = [*job.callbacks, *training_callbacks(context, stage, recovery.figures), times]
    job = replace(job, callbacks=callbacks)

    def sized() -> TrainingJob:
        return replace(job, sizes=recovery.sizes, rollout_limit=recovery.rollout_limit())

    measured: Record | None = None
    while job.longest and measured is None:
        step = _step_of(resumed) + 1
        measured = run_preflight_step(build(backend, holder.policy, preflight_job(sized(), stage)))
        context.stop.check(_saved(stage, resumed))
        if measured is None:
            recovery.shrink(step, "preflight step", resumed.name if resumed else None, plan)
        else:
            times.note_preflight(measured["seconds"])
        holder.reload()  # discards the update of the preflight step
    begin_peak()
    while True:
        start = last_checkpoint(folder)
        if start:
            log.info("%s: resuming from %s", stage, start.name)
        outcome = _use_one_trainer(backend, holder.policy, build, sized(), start)
        if outcome.fits:
            break
        start = last_checkpoint(folder)  # the one just written, if the optimizer step was complete
        during = ("rollout or pass" if stage == "grpo" else "pass") if outcome.complete else "optimizer step"
        recovery.shrink(max(outcome.step, _step_of(start)) + 1, during, start.name if start else None, plan)
        _remove_later_metrics(context, stage, _step_of(start), recovery)
        context.stop.check(_saved(stage, start))
        holder.reload()
    _check_end(context, stage, outcome)
    distributed.wait_for_all()
    if is_main_process():
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    return {
        "steps": outcome.steps,
        "seconds": round(time.monotonic() - begun, 1),
        "seconds_per_step": times.record(),
        "skipped_steps": _logged(context, stage, "skipped_steps"),
        "resumed_from": resumed.name if resumed else None,
        "gpu_memory": {**gpu_peaks(), **recovery.to_record(), "preflight": measured},
    }


def _use_one_trainer(
    backend: Backend,
    policy: Policy,
    build: Build,
    job: TrainingJob,
    start: Path | None,
) -> _Outcome:
    """Train from ``start`` until the end, a signal, or an out-of-memory error. Save the last finished step.

    Raises:
        TrainingError: One of several processes is out of memory.
    """
    if start and job.recipe.model.tuning == "full":
        # transformers looks for parameter names that differ from the saved ones, and would silently load nothing.
        backend.restore(policy, start)
    trainer = build(backend, policy, job)
    last = LastStep(trainer)
    # The trainer restores the adapter, optimizer, schedule and random state, and skips the rows that the checkpoint has
    # used. Training therefore continues with the same numbers as without an interruption.
    fits = attempt(partial(trainer.train, resume_from_checkpoint=str(start) if start else None)) is not None
    step = trainer.state.global_step
    if not fits:
        if world_size() > 1:
            raise TrainingError(
                "training.process_out_of_memory",
                "each process must have enough memory for its rows, because all make the same passes",
                place=f"step {step + 1}",
                value="out of memory",
                remedy="Lower batch_size (SFT) or micro_batch (GRPO).",
            )
        trainer.model.zero_grad()  # frees the gradients of the passes before the error
        # An error inside ``optimizer.step`` leaves some parameters updated. Then only the last checkpoint can be used.
        if last.complete and step > _step_of(start):
            if _step_of(last_checkpoint(job.folder)) < step:
                _warn_unlogged(trainer, start)
                last.save()
            fits = step == trainer.state.max_steps
            if fits:
                warn(
                    "training.out_of_memory_at_end",
                    "out of memory after the last optimizer step, which is saved",
                    place=f"step {step}",
                )
    return _Outcome(step, trainer.state.max_steps, fits, last.complete)


def _warn_unlogged(trainer: Any, start: Path | None) -> None:
    """Warn if ``run.log_steps`` is above 1 and the last finished steps are in no line of metrics.jsonl."""
    lines = [int(line["step"]) for line in trainer.state.log_history]
    logged, step = max([_step_of(start), *lines]), trainer.state.global_step
    if logged < step:
        warn(
            "training.steps_not_logged",
            "these optimizer steps are missing from metrics.jsonl and from num_tokens",
            place=f"steps {logged + 1} to {step}",
        )


def _saved(stage: str, start: Path | None) -> str:
    return f"{stage} is saved after step {_step_of(start)}" if start else f"no step of {stage} had finished"


def _check_end(context: Context, stage: str, outcome: _Outcome) -> None:
    step, steps = outcome.step, outcome.steps
    if step < steps:
        context.stop.check(f"{stage} is saved after step {step} of {steps}")
        raise TrainingError(
            "training.ended_early",
            f"training must reach step {steps}",
            place=stage,
            value=step,
            remedy="Lower batch_size or prompts_per_step, or add rows: there are too few for an optimizer step.",
        )


def _remove_later_metrics(context: Context, stage: str, step: int, recovery: Recovery) -> None:
    """Remove the steps after ``step`` from metrics.jsonl, because training repeats them."""
    if is_main_process() and (count := context.run.remove_metrics(stage, step)):
        warn(
            "training.metrics_removed",
            f"{count} lines of metrics.jsonl after step {step} are removed, because these steps are repeated",
            place=stage,
        )
    recovery.logged = _logged(context, stage, "out_of_memory")


def _logged(context: Context, stage: str, name: str) -> int:
    """Return the sum of a count over the stage's lines of metrics.jsonl."""
    return int(sum(line.get(name, 0) for line in context.run.metrics() if line["stage"] == stage))


def _is_finished(checkpoint: Path) -> bool:
    state = read_json(checkpoint / "trainer_state.json")
    return bool(state["global_step"] >= state["max_steps"])


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


def preflight_rows(lengths: Lengths, wanted: bool | None) -> tuple[int, ...]:
    """Return the rows of the preflight step, the longest first. None if it is not ``wanted`` (default: on a GPU).

    Several processes skip it, because they cannot change their sizes after an out-of-memory error.
    """
    if wanted is None:
        wanted = torch.cuda.is_available()
    return lengths.longest if wanted and world_size() == 1 else ()


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a stage. Skip incomplete ones with a warning."""
    for checkpoint in reversed(checkpoints(folder)):
        if is_complete(checkpoint):
            return checkpoint
        warn("training.checkpoint_incomplete", "checkpoint is incomplete or corrupt. Skipping it", place=checkpoint)
    return None


def save_weights(backend: Backend, policy: Policy, target: Path) -> None:
    """Write the weights under a temporary name, then rename them. The first process writes, and the others wait."""
    if is_main_process():
        _write_weights(backend, policy, target)
    distributed.wait_for_all()


def _write_weights(backend: Backend, policy: Policy, target: Path) -> None:
    partial = target.with_name(f"{target.name}.partial")
    for old in (partial, target):
        if old.exists():
            shutil.rmtree(old)
    backend.save(policy, partial)
    flush_folder(partial)
    partial.replace(target)
