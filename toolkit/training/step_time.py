"""Seconds per optimizer step of a training stage: from the plan, from the preflight step, and measured."""

import statistics
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.evaluation.context import Context
from toolkit.runfolder import RunFolder, format_duration, read_json
from toolkit.training.results import StepSeconds


def planned_seconds(run: RunFolder, stage: str) -> tuple[float, float] | None:
    """Return the range of seconds per step that plan.json has for this machine's GPU, or None."""
    plan: dict[str, Any] = read_json(run.plan_file) if run.plan_file.is_file() else {}
    times, gpu = plan.get("time") or {}, plan.get("gpu") or {}
    found = times.get("gpus", {}).get(times.get("here"), {}).get(stage)
    if not gpu.get("here") or found is None:
        return None
    low, high = found["seconds_per_step"]
    return float(low), float(high)


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
