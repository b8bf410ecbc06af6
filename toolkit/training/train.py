"""What SFT and GRPO share: preflight step, OOM recovery, resume from the last whole checkpoint, weights by a rename."""

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
from toolkit.data.loading.balance import balance
from toolkit.errors import TrainingError, warn
from toolkit.evaluation.context import Context
from toolkit.models import Backend, distributed
from toolkit.models.backend import Policy, TrainingJob
from toolkit.models.lengths import Lengths
from toolkit.models.oom import attempt, free
from toolkit.runfolder import Record, flush_folder, is_main_process, read_json, world_size
from toolkit.runfolder.usage import begin_peak, gpu_peaks
from toolkit.tasks import TASKS
from toolkit.training.callbacks import PARTIAL, Checkpoints, LastStep, Report, StopBetweenSteps, checkpoints, is_whole
from toolkit.training.oom_recovery import Recovery
from toolkit.training.preflight import make_preflight_step, preflight_job
from toolkit.training.step_time import StepTimes

log = logging.getLogger(__name__)


def training_rows(context: Context, stage: str) -> SampleSet:
    """The training rows, drawn as ``data.sampling`` says, which is told."""
    samples, task = context.data.train, TASKS[context.recipe.dataset.task]
    if context.recipe.dataset.sampling == "natural" or task.stratum is None:
        return samples
    balanced, counts = balance(samples, task.stratum, context.recipe.run.seed)
    told = ", ".join(f"{name} {draws:,} draws of {rows:,} rows" for name, (rows, draws) in counts.items())
    log.info("%s: balanced sampling: %s", stage, told)
    return balanced


def training_callbacks(
    context: Context, stage: str, notes: Callable[[], Mapping[str, float]] = dict[str, float]
) -> list[Any]:
    """Progress, whole checkpoints, and the stop on a signal. ``notes``: figures to add to the next line of the log."""
    folder = context.run.stage_folder(stage)

    def report(step: int, steps: int, figures: Any) -> None:
        context.report(stage, step, steps, figures)

    return [
        Report(report, notes),
        StopBetweenSteps(context.stop),
        Checkpoints(folder, context.recipe.run.keep_checkpoints),
    ]


@contextmanager
def _tracked(context: Context, stage: str) -> Iterator[None]:
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


Prepare = Callable[[Policy], tuple[TrainingJob, Record]]
"""Checks what must be known before the first step, on a policy just loaded; returns the job, and facts for the record.
"""


def train(context: Context, stage: str, backend: Backend, prepare: Prepare) -> Record:
    """Train to the end, from the last complete checkpoint if there is one, save the weights, return the figures.

    After an out-of-memory error training continues with smaller sizes; see ``recovery``.

    Raises:
        Interrupted: a signal came; the step was finished and saved.
        TrainingError: the loss became NaN or infinite, the rows ran out, or one row does not fit the GPU.
    """
    folder = context.run.stage_folder(stage)
    if is_main_process() and (folder / PARTIAL).exists():
        shutil.rmtree(folder / PARTIAL)  # what an interruption left half written; nothing is resumed from it
    distributed.meet()
    held = _Held(partial(backend.load, context.recipe, context.weights, trainable=True))
    job, facts = prepare(held.policy)
    start = last_checkpoint(folder)
    if start and _is_finished(start):
        backend.restore(held.policy, start)  # only the weights are missing; transformers would train one step more
        record = _trained_earlier(context, stage, start)
    else:
        with _tracked(context, stage):
            record = _train(context, stage, backend, held, job)
    save_weights(backend, held.policy, context.run.weights_folder(stage))
    return {**record, **facts}


class _Held:
    """One policy at a time: two of them do not fit a GPU. Nobody else keeps it while another one is loaded."""

    def __init__(self, load: Callable[[], Policy]) -> None:
        self._load, self._policy = load, load()

    @property
    def policy(self) -> Policy:
        return self._policy

    def reload(self) -> None:
        """Drop the policy and load it anew."""
        del self._policy
        free()
        self._policy = self._load()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How the work of one trainer ended. ``whole``: the parameters were those of the last finished step."""

    step: int
    steps: int
    fits: bool
    whole: bool


def _trained_earlier(context: Context, stage: str, last: Path) -> Record:
    """Return the record of a stage that was interrupted after its last step, before its weights were written."""
    unmeasured = dict.fromkeys(gpu_peaks())
    return {
        "steps": _step_of(last),
        "seconds": 0.0,
        "seconds_per_step": StepTimes(context, stage).record(),
        "skipped_steps": _logged(context, stage, "skipped_steps"),
        "resumed_from": last.name,
        "memory": {
            **unmeasured,
            **Recovery(context.run.stage_folder(stage), context.recipe, stage).to_record(),
            "preflight": None,
        },
    }


def _builder(stage: str, backend: Backend) -> Callable[[Policy, TrainingJob], Any]:
    """Return the function that builds the stage's trainer."""
    from toolkit.training import trainers  # not before the backend is chosen: Unsloth must be imported before trl

    return partial(trainers.build_sft if stage == "sft" else trainers.build_grpo, backend)


def _train(context: Context, stage: str, backend: Backend, held: _Held, job: TrainingJob) -> Record:
    """Preflight, then one trainer after another until one reaches the end."""
    folder, recovery = context.run.stage_folder(stage), Recovery(context.run.stage_folder(stage), context.recipe, stage)
    plan = read_json(context.run.plan_file) if context.run.plan_file.is_file() else None
    resumed, begun = last_checkpoint(folder), time.monotonic()
    _forget_steps(context, stage, _step_of(resumed), recovery)
    build = _builder(stage, backend)
    times = StepTimes(context, stage)
    callbacks = [*job.callbacks, *training_callbacks(context, stage, recovery.figures), times]
    job = replace(job, callbacks=callbacks)

    def sized() -> TrainingJob:
        return replace(job, sizes=recovery.sizes, rollout=recovery.rollout())

    measured: Record | None = None
    while job.longest and measured is None:
        step = _step_of(resumed) + 1
        measured = make_preflight_step(build(held.policy, preflight_job(sized(), stage)))
        context.stop.check(_saved(stage, resumed))
        if measured is None:
            recovery.shrink(step, "preflight step", resumed.name if resumed else None, plan)
        else:
            times.note_preflight(measured["seconds"])
        held.reload()
    begin_peak()
    while True:
        start = last_checkpoint(folder)
        if start:
            log.info("%s: resuming from %s", stage, start.name)
        outcome = _use_one_trainer(backend, held.policy, build, sized(), start)
        if outcome.fits:
            break
        start = last_checkpoint(folder)  # the one just written, if the step's parameters were whole
        during = ("rollout or pass" if stage == "grpo" else "pass") if outcome.whole else "optimizer step"
        recovery.shrink(max(outcome.step, _step_of(start)) + 1, during, start.name if start else None, plan)
        _forget_steps(context, stage, _step_of(start), recovery)
        context.stop.check(_saved(stage, start))
        held.reload()
    _check_end(context, stage, outcome)
    distributed.meet()
    if is_main_process():
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    return {
        "steps": outcome.steps,
        "seconds": round(time.monotonic() - begun, 1),
        "seconds_per_step": times.record(),
        "skipped_steps": _logged(context, stage, "skipped_steps"),
        "resumed_from": resumed.name if resumed else None,
        "memory": {**gpu_peaks(), **recovery.to_record(), "preflight": measured},
    }


def _use_one_trainer(
    backend: Backend,
    policy: Policy,
    build: Callable[[Policy, TrainingJob], Any],
    job: TrainingJob,
    start: Path | None,
) -> _Outcome:
    """Train from ``start`` to the end, to a signal, or to an out-of-memory error, with the last step saved.

    Raises:
        TrainingError: one of several processes is out of memory.
    """
    if start and job.recipe.model.tuning == "full":
        backend.restore(policy, start)  # transformers looks for other names than it saved, and goes on without
    trainer = build(policy, job)
    last = LastStep(trainer)
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
        trainer.model.zero_grad()
        if last.whole and step > _step_of(start):
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
    return _Outcome(step, trainer.state.max_steps, fits, last.whole)


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


def _forget_steps(context: Context, stage: str, step: int, recovery: Recovery) -> None:
    """Take the steps after ``step``, which are made again, out of metrics.jsonl."""
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


def rows_for_preflight(lengths: Lengths, wanted: bool | None) -> tuple[int, ...]:
    """Return the rows for the preflight step, the longest first, or none if it is not ``wanted`` (None: on a GPU).

    Several processes make none: after an out-of-memory error they could not make smaller passes.
    """
    if wanted is None:
        wanted = torch.cuda.is_available()
    return lengths.longest if wanted and world_size() == 1 else ()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a stage; skips an incomplete one with a warning."""
    for checkpoint in reversed(checkpoints(folder)):
        if is_whole(checkpoint):
            return checkpoint
        warn("training.checkpoint_incomplete", "checkpoint is incomplete or corrupt. Skipping it", place=checkpoint)
    return None


def save_weights(backend: Backend, policy: Policy, target: Path) -> None:
    """Write the weights beside their place, then rename; the first process does, and the others wait."""
    if is_main_process():
        _write_weights(backend, policy, target)
    distributed.meet()


def _write_weights(backend: Backend, policy: Policy, target: Path) -> None:
    partial = target.with_name(f"{target.name}.partial")
    for old in (partial, target):
        if old.exists():
            shutil.rmtree(old)
    backend.save(policy, partial)
    flush_folder(partial)
    partial.replace(target)
