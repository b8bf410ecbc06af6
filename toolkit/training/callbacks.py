"""Callbacks between optimizer steps: metrics, complete checkpoints, and a clean stop on a signal."""

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.errors import TrainingError
from toolkit.runfolder import StopRequest, flush_folder, is_main_process, read_json, write_json
from toolkit.training import distributed
from toolkit.training.random_state import RandomState

log = logging.getLogger(__name__)

PARTIAL = "partial"
"""The folder that the trainer writes to. A complete checkpoint is moved out of it by a rename."""

MANIFEST = "manifest.json"
"""File with the names and sizes of a checkpoint's files."""


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a stage, the oldest first."""
    return sorted((folder / "checkpoints").glob("step-*"))


def is_complete(checkpoint: Path) -> bool:
    """Return whether every file of a checkpoint exists with the size in its manifest."""
    try:
        sizes = read_json(checkpoint / MANIFEST)
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


class Checkpoints(TrainerCallback):
    """Moves each complete checkpoint to ``checkpoints/step-N`` and keeps the newest ``keep``.

    transformers writes into the final folder and resumes from any folder there, even an incomplete one
    (transformers#35033). Here, a folder under ``checkpoints`` is complete or absent.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the intervals of this start, because a resumed state has those of the checkpoint."""
        state.save_steps, state.logging_steps = int(args.save_steps), int(args.logging_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the checkpoint that the trainer has written to ``partial/checkpoint-N``."""
        distributed.wait_for_all()  # each process has written its own random state
        if is_main_process():
            self._keep(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", state.global_step)
        distributed.wait_for_all()

    def _keep(self, source: Path, step: int) -> None:
        write_json(source / MANIFEST, {file.name: file.stat().st_size for file in source.iterdir() if file.is_file()})
        target = self.folder / "checkpoints" / f"step-{step:08d}"
        # A resumed stage recreates the frozen reference of the KL term from its start weights. If the checkpoint had
        # the reference adapter too, transformers would not load the trained adapter.
        shutil.rmtree(source / "ref", ignore_errors=True)
        flush_folder(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        source.rename(target)
        for old in checkpoints(self.folder)[: -self.keep]:
            shutil.rmtree(old)


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


class LastStep(TrainerCallback):
    """Saves a checkpoint of the last finished optimizer step after an out-of-memory error in the next one.

    A checkpoint needs the random state and the counters of the last finished step, which the trainer does not keep.
    The constructor adds the object to the trainer's callbacks.

    Attributes:
        complete: Whether the parameters are those of the last finished step. False inside ``optimizer.step``, which
            may have updated some parameters.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.complete = True
        self._remember(trainer.state)
        trainer.add_callback(self)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remember the state that the trainer loaded from a checkpoint."""
        self._remember(state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Mark the parameters as incomplete before ``optimizer.step``."""
        self.complete = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remember the state after ``optimizer.step`` and the scheduler's step."""
        self._remember(state)
        self.complete = True

    def save(self) -> None:
        """Write a checkpoint of the last finished step, as the trainer does within its loop.

        transformers calls ``_save_checkpoint`` there (checked: 5.2 to 5.17). It is private, but the only way to write
        a checkpoint of the same format. The counts of the unfinished step are subtracted first.
        """
        trainer = self._trainer
        self._random.restore()
        trainer.state.num_input_tokens_seen = self._tokens
        trainer.state.total_flos, trainer.current_flos = self._flos, 0
        trainer._save_checkpoint(trainer.model, trial=None)
        trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)

    def _remember(self, state: TrainerState) -> None:
        self._random = RandomState.now()
        self._tokens = state.num_input_tokens_seen
        self._flos = state.total_flos + self._trainer.current_flos


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
        self.report(state.global_step, state.max_steps, {**metrics, **self.notes()})


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
