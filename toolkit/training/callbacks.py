"""What happens between optimizer steps: progress, whole checkpoints, a clean stop on a signal."""

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.errors import TrainingError
from toolkit.models import distributed
from toolkit.runfolder import StopRequest, flush_folder, is_main_process, read_json, write_json
from toolkit.training.random_state import RandomState

log = logging.getLogger(__name__)

PARTIAL = "partial"
"""Where the trainer writes; a checkpoint leaves it by a rename once it is complete."""


MANIFEST = "manifest.json"
"""A checkpoint's files and their sizes."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a stage, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*"))


def is_whole(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint is there with the size that it was written with."""
    try:
        sizes = read_json(checkpoint / MANIFEST)
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


class Checkpoints(TrainerCallback):
    """Moves each checkpoint to ``checkpoints/step-N`` when it is complete and keeps the newest ``keep``.

    transformers writes into the final folder and resumes from whatever it finds there, a half-written one included
    (transformers#35033); here a folder under ``checkpoints`` is complete or absent.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer before its first step: on resuming it has the old spacing from the checkpoint."""
        state.save_steps, state.logging_steps = int(args.save_steps), int(args.logging_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer after it has written ``partial/checkpoint-N``."""
        distributed.meet()  # each process has written its own random state
        if is_main_process():
            self._keep(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", state.global_step)
        distributed.meet()

    def _keep(self, source: Path, step: int) -> None:
        write_json(source / MANIFEST, {file.name: file.stat().st_size for file in source.iterdir() if file.is_file()})
        target = self.folder / "checkpoints" / f"step-{step:08d}"
        # The frozen reference of a KL term is made anew from the start weights. Beside it, transformers would not load
        # the adapter that is trained.
        shutil.rmtree(source / "ref", ignore_errors=True)
        flush_folder(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        source.rename(target)
        for old in checkpoints(self.folder)[: -self.keep]:
            shutil.rmtree(old)


class StopBetweenSteps(TrainerCallback):
    """Ends the training after the current step, with a checkpoint, once a stop was asked for."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer after each optimiser step."""
        if number := distributed.highest(self.stop.number or 0):
            self.stop.join(number)  # a signal may reach one process of several, or reach them at different steps
        if self.stop.requested and state.global_step < state.max_steps:
            control.should_log = True  # what is not finite is seen in the log, which comes before the checkpoint
            control.should_save = True
            control.should_training_stop = True


class LastStep(TrainerCallback):
    """What a checkpoint of the last finished optimizer step needs besides the trainer's own state.

    It joins the trainer's callbacks when it is made.

    Attributes:
        whole: the parameters are those of the last finished step, not changed by half of the next one.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.whole = True
        self._keep(trainer.state)
        trainer.add_callback(self)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer before its first step, with what it loaded from a checkpoint."""
        self._keep(state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the trainer before ``optimizer.step``."""
        self.whole = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer after ``optimizer.step`` and the scheduler's."""
        self._keep(state)
        self.whole = True

    def save(self) -> None:
        """Write a checkpoint of the last finished step, as the trainer does within its loop.

        ``_save_checkpoint`` is what transformers calls there (checked: 5.2 to 5.17). It is private, but the only way to
        a checkpoint of the same format. What the unfinished step has added to the trainer's counts is taken off first.
        """
        trainer = self._trainer
        self._random.restore()
        trainer.state.num_input_tokens_seen = self._tokens
        trainer.state.total_flos, trainer.current_flos = self._flos, 0
        trainer._save_checkpoint(trainer.model, trial=None)
        trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)

    def _keep(self, state: TrainerState) -> None:
        self._random = RandomState.now()
        self._tokens = state.num_input_tokens_seen
        self._flos = state.total_flos + self._trainer.current_flos


class Report(TrainerCallback):
    """Hands each step's figures to ``report(step, steps, figures)``, with those that ``notes`` returns.

    With float16 a gradient scaler skips the optimizer steps whose gradients overflow, by design, and lowers its scale.
    The loss and gradient norm of such steps are not checked. Non-finite ones are left out of the log, which has
    ``skipped_steps`` and ``loss_scale`` instead.

    TRL counts the tokens of SFT (``num_tokens``) from zero in each start; here they are counted over the whole stage.
    The closing summary of a resumed training has no means: transformers divides the sums of this start by all steps.
    """

    def __init__(
        self,
        report: Callable[[int, int, Mapping[str, float]], None],
        notes: Callable[[], Mapping[str, float]] = dict[str, float],
    ) -> None:
        self.report, self.notes = report, notes
        self._skipped: dict[int, float] = {}
        """Skipped steps that the log does not have yet -> the scale from there on."""
        self._tokens_before = 0.0
        self._resumed = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer before its first step, with what it loaded from a checkpoint."""
        counted = state.num_input_tokens_seen > 0  # GRPO's tokens are part of the checkpoint
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
        """Called by the trainer after ``optimizer.step``, with accelerate's optimizer.

        Raises:
            TrainingError: the scale fell below 1: the gradients overflow even if nothing magnifies them.
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
        """Called by the trainer when it logs; its closing summary comes this way too."""
        figures = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if "num_tokens" in figures:
            figures["num_tokens"] += self._tokens_before
            state.log_history[-1]["num_tokens"] = figures["num_tokens"]  # a later start counts on from here
        if self._resumed:
            figures = {name: value for name, value in figures.items() if name not in _MEANS}
        if self._skipped:
            overflown = [name for name in _CHECKED if not math.isfinite(figures.get(name, 0.0))]
            figures = {name: value for name, value in figures.items() if name not in overflown}
            figures |= {"skipped_steps": float(len(self._skipped)), "loss_scale": self._skipped[max(self._skipped)]}
            self._skipped = {}
        _check_finite(figures, state.global_step)
        self.report(state.global_step, state.max_steps, {**figures, **self.notes()})


_CHECKED = ("loss", "grad_norm")
_MEANS = ("train_loss", "train_samples_per_second", "train_steps_per_second")


def _check_finite(figures: Mapping[str, float], step: int) -> None:
    """Raise before a checkpoint of such a step is written, so that the last good one stays."""
    for name in _CHECKED:
        if not math.isfinite(figures.get(name, 0.0)):
            raise TrainingError(
                f"training.{name}_not_finite",
                f"{name} must be finite",
                place=f"step {step}",
                value=figures[name],
                remedy="Lower learning_rate and start again with --fresh.",
            )
