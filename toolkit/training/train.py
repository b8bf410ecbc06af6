"""The training loop of SFT, DPO and GRPO: preflight step, one trainer after another, and saving of the weights.

Resume is in ``resume``, the sizes after an out-of-memory error are in ``oom_recovery``.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from toolkit.data.sample_set import SampleSet, balance
from toolkit.errors import TrainingError, warn
from toolkit.evaluation.stage_context import Context
from toolkit.models import Backend
from toolkit.models.backend import Policy, TrainingJob
from toolkit.models.lengths import TokenLengths
from toolkit.models.oom import attempt, free
from toolkit.runfolder import flush_folder, is_main_process, remove_tree, world_size
from toolkit.runfolder.manifest import write_manifest
from toolkit.runfolder.usage import begin_peak, gpu_peaks
from toolkit.tasks import TASKS
from toolkit.training import distributed
from toolkit.training.callbacks import MetricsReporter, StepTimes, StopBetweenSteps
from toolkit.training.oom_recovery import Recovery
from toolkit.training.preflight import preflight_job, run_preflight_step
from toolkit.training.results import PreflightResult, TrainingFigures
from toolkit.training.resume import (
    Checkpoints,
    LastStep,
    is_finished,
    last_checkpoint,
    remove_later_metrics,
    remove_partial,
    restore_parameters,
    step_of,
)
from toolkit.training.validation import StoppedBeforeFirstStep, ValidateSteps, Validator

log = logging.getLogger(__name__)


def training_rows(context: Context, stage: str) -> SampleSet:
    """Return the training rows, drawn as ``data.sampling`` requests. The log has the counts of balanced sampling."""
    samples, task = context.data.train, TASKS[context.recipe.dataset.task]
    if context.recipe.dataset.sampling == "natural" or task.stratum is None:
        return samples
    balanced, counts = balance(samples, task.stratum, context.recipe.run.seed_of_training)
    listed = ", ".join(f"{name} {draws:,} draws of {rows:,} rows" for name, (rows, draws) in counts.items())
    log.info("%s: balanced sampling: %s", stage, listed)
    return balanced


def training_callbacks(
    context: Context,
    stage: str,
    notes: Callable[[], Mapping[str, float]] = dict[str, float],
    kept_step: Callable[[], int | None] = lambda: None,
) -> list[Any]:
    """Return the callbacks for metrics, checkpoints, and the stop on a signal.

    Args:
        context: The run.
        stage: Name of the stage.
        notes: Returns metrics to add to the next line of the log.
        kept_step: Returns the step of a checkpoint that is kept beside the newest ones.
    """
    folder = context.run.stage_folder(stage)

    def report(step: int, steps: int, metrics: Any) -> None:
        context.report(stage, step, steps, metrics)

    return [
        MetricsReporter(report, notes),
        StopBetweenSteps(context.stop),
        Checkpoints(folder, context.recipe.run.keep_checkpoints, kept_step),
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


Prepare = Callable[[Policy], tuple[TrainingJob, TokenLengths]]
"""Makes the checks before the first step on a newly loaded policy. Returns the job, and the lengths of its rows."""
Build = Callable[[Backend, Policy, TrainingJob], Any]
"""Builds the trainer of a stage."""


def train(
    context: Context,
    stage: str,
    backend: Backend,
    prepare: Prepare,
    build: Build,
    validator: Validator | None = None,
) -> tuple[TrainingFigures, TokenLengths]:
    """Train to the end, save the weights, and return the figures and the lengths of the rows.

    Training resumes from the last complete checkpoint (see ``resume``). After an out-of-memory error it continues with
    smaller sizes (see ``oom_recovery``). With a validator it can stop early, and saves the best weights.

    Raises:
        Interrupted: A signal came. The optimizer step was finished and saved.
        TrainingError: The loss became NaN or infinite, the rows ran out, or one row does not fit the GPU.
    """
    folder = context.run.stage_folder(stage)
    remove_partial(folder)
    holder = _PolicyHolder(partial(backend.load, context.recipe, context.weights, trainable=True))
    job, lengths = prepare(holder.policy)
    start = last_checkpoint(folder)
    if validator is not None:
        validator.check_rows(holder.policy)
        validator.read(start)
    if start and (is_finished(start) or (validator is not None and validator.stops)):
        # The interruption came after the last step, before the weights were written. A trainer that resumes here would
        # make one step too many.
        backend.restore(holder.policy, start)
        figures = _finished_figures(context, stage, start, job)
    else:
        with _tensorboard_folder(context, stage):
            figures = _train(_Stage(context, stage, backend, holder, build, validator), job)
    if validator is not None:
        best = validator.finish(backend, holder.policy, folder, figures.steps)
        figures = replace(figures, validation=best)
    save_weights(backend, holder.policy, context.run.weights_folder(stage))
    return figures, lengths


def save_weights(backend: Backend, policy: Policy, target: Path) -> None:
    """Write the weights under a temporary name, then rename them. The first process writes, and the others wait."""
    if is_main_process():
        _write_weights(backend, policy, target)
    distributed.wait_for_all()


def _write_weights(backend: Backend, policy: Policy, target: Path) -> None:
    partial_folder = target.with_name(f"{target.name}.partial")
    for old in (partial_folder, target):
        remove_tree(old)
    backend.save(policy, partial_folder)
    flush_folder(partial_folder)
    write_manifest(partial_folder)
    partial_folder.replace(target)


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
        finished_without_oom: Whether no optimizer step is left to repeat because of an out-of-memory error.
        complete: Whether the parameters are those of the last finished step.
    """

    step: int
    steps: int
    finished_without_oom: bool
    complete: bool


def _finished_figures(context: Context, stage: str, last: Path, job: TrainingJob) -> TrainingFigures:
    """Return the figures of a stage that was interrupted after its last step, before its weights were written."""
    recovery = Recovery(context.run.stage_folder(stage), context.recipe, stage, job.sizes)
    return TrainingFigures(
        steps=step_of(last),
        seconds=0.0,
        seconds_per_step=StepTimes(context, stage).result(),
        skipped_steps=logged_sum(context, stage, "skipped_steps"),
        resumed_from=last.name,
        gpu_memory=recovery.gpu_memory(dict.fromkeys(gpu_peaks()), None),
    )


@dataclass(frozen=True, slots=True)
class _Stage:
    """A stage and its policy."""

    context: Context
    stage: str
    backend: Backend
    holder: _PolicyHolder
    build: Build
    validator: Validator | None


@dataclass(frozen=True, slots=True)
class _Loop(_Stage):
    """What all trainers of a stage have in common."""

    job: TrainingJob
    recovery: Recovery

    @property
    def folder(self) -> Path:
        return self.context.run.stage_folder(self.stage)

    @property
    def sized_job(self) -> TrainingJob:
        """The job with the current sizes of OOM recovery."""
        return replace(self.job, sizes=self.recovery.sizes, rollout_limit=self.recovery.rollout_limit())

    def shrink(self, step: int, during: str, start: Path | None) -> None:
        """Switch to smaller sizes after an out-of-memory error. See ``Recovery.shrink``."""
        self.recovery.shrink(step, during, start.name if start else None, self.context.run.plan())


def _train(training: _Stage, job: TrainingJob) -> TrainingFigures:
    """Make the preflight step, then build one trainer after another until one reaches the end."""
    context, stage, validator = training.context, training.stage, training.validator
    folder = context.run.stage_folder(stage)
    recovery, times = Recovery(folder, context.recipe, stage, job.sizes), StepTimes(context, stage)
    kept = () if validator is None else (validator.kept_step,)
    callbacks = [*job.callbacks, *training_callbacks(context, stage, recovery.figures, *kept), times]
    job = replace(job, callbacks=callbacks)
    loop = _Loop(context, stage, training.backend, training.holder, training.build, validator, job, recovery)
    resumed, begun = last_checkpoint(folder), time.monotonic()
    _remove_later_metrics(loop, step_of(resumed))
    preflight = _preflight(loop, resumed) if job.longest else None
    if preflight is not None:
        times.note_preflight(preflight.seconds)
    begin_peak()
    outcome = _train_to_end(loop)
    _check_end(loop, outcome)
    distributed.wait_for_all()
    remove_partial(folder)
    return TrainingFigures(
        steps=outcome.step,
        seconds=round(time.monotonic() - begun, 1),
        seconds_per_step=times.result(),
        skipped_steps=logged_sum(context, stage, "skipped_steps"),
        resumed_from=resumed.name if resumed else None,
        gpu_memory=recovery.gpu_memory(gpu_peaks(), preflight),
    )


def _preflight(loop: _Loop, resumed: Path | None) -> PreflightResult:
    """Repeat the preflight step with smaller sizes until it fits."""
    measured = None
    while measured is None:
        trainer = loop.build(loop.backend, loop.holder.policy, preflight_job(loop.sized_job, loop.stage))
        measured = run_preflight_step(trainer)
        del trainer  # its reference to the policy would keep two models in GPU memory
        loop.context.stop.check(_saved(loop.stage, resumed))
        if measured is None:
            loop.shrink(step_of(resumed) + 1, "preflight step", resumed)
        loop.holder.reload()  # discards the update of the preflight step
    return measured


def _train_to_end(loop: _Loop) -> _Outcome:
    """Train, with smaller sizes after each out-of-memory error, until the end or a signal."""
    while True:
        start = last_checkpoint(loop.folder)
        if start:
            log.info("%s: resuming from %s", loop.stage, start.name)
        outcome = _use_one_trainer(loop, start)
        if outcome.finished_without_oom:
            return outcome
        start = last_checkpoint(loop.folder)  # the one just written, if the optimizer step was complete
        during = ("rollout or pass" if loop.stage == "grpo" else "pass") if outcome.complete else "optimizer step"
        loop.shrink(max(outcome.step, step_of(start)) + 1, during, start)
        _remove_later_metrics(loop, step_of(start))
        loop.context.stop.check(_saved(loop.stage, start))
        loop.holder.reload()


def _use_one_trainer(loop: _Loop, start: Path | None) -> _Outcome:
    """Train from ``start`` until the end, a signal, or an out-of-memory error. Save the last finished step.

    Raises:
        TrainingError: One of several processes is out of memory, or a file of the checkpoint is not plain data.
    """
    restore_parameters(loop.backend, loop.holder.policy, loop.context.recipe, start)
    trainer = loop.build(loop.backend, loop.holder.policy, loop.sized_job)
    if loop.validator is not None:
        ValidateSteps(trainer, loop.backend, loop.holder.policy, loop.validator)
    last = LastStep(trainer)
    resume = partial(trainer.train, resume_from_checkpoint=str(start) if start else None)
    try:
        ended = attempt(resume) is not None or _save_after_oom(trainer, last, loop.folder, start)
    except StoppedBeforeFirstStep:
        ended = True
    except UnpicklingError as error:  # transformers loads a checkpoint's states with ``weights_only``
        raise TrainingError(
            "training.checkpoint_not_plain_data",
            "the states in a checkpoint must be plain data, because a pickle can run code",
            place=start or loop.folder,
            value=str(error).strip().splitlines()[0][:200],
            remedy="Delete the checkpoint, and run the same command again. It resumes from the one before.",
        ) from error
    return _Outcome(trainer.state.global_step, trainer.state.max_steps, ended, last.complete)


def _save_after_oom(trainer: Any, last: LastStep, folder: Path, start: Path | None) -> bool:
    """Save the last finished step after an out-of-memory error. Return whether it was the last one of the stage.

    Raises:
        TrainingError: One of several processes is out of memory.
    """
    step = trainer.state.global_step
    if world_size() > 1:
        raise TrainingError(
            "training.process_out_of_memory",
            "each process must have enough memory for its rows, because all make the same passes",
            place=f"step {step + 1}",
            value="out of memory",
            remedy="Lower batch_size (SFT, DPO) or micro_batch (GRPO).",
        )
    trainer.model.zero_grad()  # frees the gradients of the passes before the error
    # An error inside ``optimizer.step`` leaves some parameters updated. Then only the last checkpoint can be used.
    if not last.complete or step <= step_of(start):
        return False
    if step_of(last_checkpoint(folder)) < step:
        _warn_unlogged(trainer, start)
        last.save()
    if step < trainer.state.max_steps:
        return False
    warn(
        "training.out_of_memory_at_end",
        "out of memory after the last optimizer step, which is saved",
        place=f"step {step}",
    )
    return True


def _warn_unlogged(trainer: Any, start: Path | None) -> None:
    """Warn if ``run.log_steps`` is above 1 and the last finished steps are in no line of metrics.jsonl."""
    lines = [int(line["step"]) for line in trainer.state.log_history if "loss" in line]
    logged, step = max([step_of(start), *lines]), trainer.state.global_step
    if logged < step:
        warn(
            "training.steps_not_logged",
            "these optimizer steps are missing from metrics.jsonl and from num_tokens",
            place=f"steps {logged + 1} to {step}",
        )


def _saved(stage: str, start: Path | None) -> str:
    return f"{stage} is saved after step {step_of(start)}" if start else f"no step of {stage} had finished"


def _check_end(loop: _Loop, outcome: _Outcome) -> None:
    context, stage, step, steps = loop.context, loop.stage, outcome.step, outcome.steps
    if step < steps and not (loop.validator is not None and loop.validator.stops):
        context.stop.check(f"{stage} is saved after step {step} of {steps}")
        raise TrainingError(
            "training.ended_early",
            f"training must reach step {steps}",
            place=stage,
            value=step,
            remedy="Lower batch_size or prompts_per_step, or add rows: there are too few for an optimizer step.",
        )


def _remove_later_metrics(loop: _Loop, step: int) -> None:
    """Remove the metrics of the steps that training repeats, and count the out-of-memory errors of the rest."""
    remove_later_metrics(loop.context.run, loop.stage, step)
    loop.recovery.logged = logged_sum(loop.context, loop.stage, "out_of_memory")


def logged_sum(context: Context, stage: str, name: str) -> int:
    """Return the sum of a count over the stage's lines of metrics.jsonl."""
    return int(sum(line.get(name, 0) for line in context.run.metrics() if line["stage"] == stage))
