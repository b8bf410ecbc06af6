"""Callbacks between optimizer steps: metrics, seconds per step, and a clean stop on a signal."""

import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.errors import TrainingError
from toolkit.evaluation.stage_context import Context
from toolkit.runfolder import RunFolder, StopRequest, format_duration
from toolkit.runfolder.usage import gpu_peaks
from toolkit.training import distributed
from toolkit.training.results import StepSeconds

log = logging.getLogger(__name__)


class StopBetweenSteps(TrainerCallback):
    """Saves a checkpoint and ends the training after the current optimizer step if a stop was requested."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check for a stop request after each optimizer step."""
        if number := distributed.max_over_processes(self.stop.number or 0):
            # A signal may reach only one of several processes, or reach them at different steps.
            self.stop.join(number)
        if self.stop.requested and state.global_step < state.max_steps:
            control.should_log = True  # logging comes before saving, and raises if the loss is not finite
            control.should_save = True
            control.should_training_stop = True


class MetricsReporter(TrainerCallback):
    """Passes the metrics of each logged step, with those of ``notes``, to ``report(step, steps, metrics)``.

    In float16, the gradient scaler skips optimizer steps whose gradients overflow, and lowers its scale. This is by
    design. The loss and gradient norm of such steps are not checked. The log omits non-finite ones, and has
    ``skipped_steps`` and ``loss_scale`` instead.

    TRL counts the tokens of SFT (``num_tokens``) from zero in each start. Here, the count covers the whole stage. The
    final summary of a resumed training omits means, because transformers divides the sums of this start by all steps.
    """

    def __init__(
        self,
        report: Callable[[int, int, Mapping[str, float]], None],
        notes: Callable[[], Mapping[str, float]] = dict[str, float],
    ) -> None:
        self.report, self.notes = report, notes
        self._skipped: dict[int, float] = {}
        """Maps skipped steps that are not logged yet to the scale that followed."""
        self._tokens_before = 0.0
        self._resumed = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Read the token count and the skipped steps of the checkpoint that the trainer loaded."""
        counted = state.num_input_tokens_seen > 0  # GRPO's token count is part of the checkpoint
        earlier = [float(entry["num_tokens"]) for entry in state.log_history if "num_tokens" in entry]
        self._tokens_before = earlier[-1] if earlier and not counted else 0.0
        self._skipped = {step: scale for step, scale in self._skipped.items() if step <= state.global_step}
        self._resumed = state.global_step > 0

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Record an optimizer step that the gradient scaler skipped.

        Raises:
            TrainingError: The scale fell below 1, so the gradients overflow even without scaling.
        """
        if not getattr(optimizer, "step_was_skipped", False):
            return
        step, scale = state.global_step + 1, float(optimizer.scaler.get_scale())
        self._skipped[step] = scale
        log.info(
            "step %d: gradients overflow in float16, optimizer step skipped; loss scale %g from here on", step, scale
        )
        if scale < 1:
            raise TrainingError(
                "training.loss_scale_below_one",
                "the float16 loss scale must be at least 1",
                place=f"step {step}",
                value=scale,
                remedy="Lower learning_rate, or train in bfloat16 or float32 (model.precision). "
                "Then start again with --fresh.",
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Check and pass on the metrics that the trainer logs, its final summary included."""
        metrics = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if "num_tokens" in metrics:
            metrics["num_tokens"] += self._tokens_before
            state.log_history[-1]["num_tokens"] = metrics["num_tokens"]  # a resumed start continues this count
        if self._resumed:
            metrics = {name: value for name, value in metrics.items() if name not in _MEANS}
        if self._skipped:
            overflowed = [name for name in _CHECKED if not math.isfinite(metrics.get(name, 0.0))]
            metrics = {name: value for name, value in metrics.items() if name not in overflowed}
            metrics |= {"skipped_steps": float(len(self._skipped)), "loss_scale": self._skipped[max(self._skipped)]}
            self._skipped = {}
        _check_finite(metrics, state.global_step)
        self.report(state.global_step, state.max_steps, {**metrics, **self.notes(), **_peak_memory()})


def _peak_memory() -> dict[str, float]:
    """Return the most GPU memory that torch reserved so far in this start, in GB. Empty: no GPU is used."""
    peak = gpu_peaks()["peak_reserved_bytes"]
    return {} if peak is None else {"gpu_memory_gb": round(peak / 1e9, 3)}


_CHECKED = ("loss", "grad_norm")
_MEANS = ("train_loss", "train_samples_per_second", "train_steps_per_second")


def _check_finite(metrics: Mapping[str, float], step: int) -> None:
    """Raise before the checkpoint of a non-finite step is written, so that the last good checkpoint stays."""
    for name in _CHECKED:
        if not math.isfinite(metrics.get(name, 0.0)):
            raise TrainingError(
                f"training.{name}_not_finite",
                f"{name} must be finite",
                place=f"step {step}",
                value=metrics[name],
                remedy="Lower learning_rate and start again with --fresh.",
            )


class StepTimes(TrainerCallback):
    """Measures optimizer steps, and reports the remaining time until the first step is measured.

    The remaining time comes from the preflight step if there was one, otherwise from the plan. After the first step,
    the progress bar measures on its own.

    A step is measured from the end of the previous step, not from its announced beginning. The trainer opens the rows
    before it announces a step, and a GPU may still compute when the trainer announces the end.
    """

    def __init__(self, context: Context, stage: str) -> None:
        self.context, self.stage = context, stage
        self.planned = planned_seconds(context.run, stage)
        self.preflight: float | None = None
        self._since = time.monotonic()
        self._steps: list[float] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report the remaining time before the first step."""
        self._since = time.monotonic()
        left = state.max_steps - state.global_step
        if self._steps:
            return  # another trainer continues after an out-of-memory error
        if self.preflight is not None:
            note = f"at most {format_duration(left * self.preflight)} left (preflight step)"
        elif self.planned is not None:
            low, high = (format_duration(left * seconds) for seconds in self.planned)
            note = f"{low} to {high} left (plan)"
        else:
            return
        self.context.progress(self.stage, state.global_step, state.max_steps, note)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure the finished optimizer step, before a checkpoint is saved."""
        now = time.monotonic()
        self._steps.append(now - self._since)
        self._since = now

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave a validation, which follows a step, out of the next one."""
        self._since = time.monotonic()

    def note_preflight(self, seconds: float) -> None:
        """Set the duration of the preflight step, which is one optimizer step on the longest rows."""
        self.preflight = seconds

    @property
    def measured(self) -> float | None:
        """Return the median seconds per step of this start. If possible, omit the first step, which may compile."""
        steps = self._steps[1:] or self._steps
        return statistics.median(steps) if steps else None

    def result(self) -> StepSeconds:
        """Return the seconds per step for the stage's result."""
        measured = None if self.measured is None else float(f"{self.measured:.4g}")
        return StepSeconds(self.planned, self.preflight, measured)


def planned_seconds(run: RunFolder, stage: str) -> tuple[float, float] | None:
    """Return the range of seconds per step that plan.json has for this machine's GPU, or None."""
    plan = run.plan()
    times, gpu = plan.get("time") or {}, plan.get("gpu") or {}
    stage_time = times.get("gpus", {}).get(times.get("here"), {}).get(stage)
    if not gpu.get("here") or stage_time is None:
        return None
    low, high = stage_time["seconds_per_step"]
    return float(low), float(high)
