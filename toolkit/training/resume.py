"""Resume of a training stage: its checkpoints, what is restored from one, and what is removed because it is repeated.

A checkpoint is a folder ``checkpoints/step-N`` with the trained weights, the optimizer, the schedule, the random state
and a manifest. A stage resumes from the newest complete one, with the same numbers as without an interruption:

- ``last_checkpoint`` returns that checkpoint, and warns about each one that it skips, with the reason. Its files are
  compared with the digests of the manifest.
- The trainer restores the adapter, optimizer, schedule and random state, and skips the rows that the checkpoint has
  used. ``restore_parameters`` restores what the trainer would not.
- ``remove_later_metrics`` removes the lines of metrics.jsonl after the checkpoint's step.
- ``Checkpoints`` writes a checkpoint while training. ``LastStep`` writes one after an out-of-memory error.

The loop that calls them is in ``train``.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.errors import warn
from toolkit.models import Backend
from toolkit.models.backend import Policy
from toolkit.models.random_state import RandomState
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, flush_folder, is_main_process, read_json, remove_tree
from toolkit.runfolder.manifest import find_damage, write_manifest
from toolkit.training import distributed

PARTIAL = "partial"
"""The folder that the trainer writes to. A complete checkpoint is moved out of it by a rename."""

_STATE = "trainer_state.json"
_CHECKPOINT = re.compile(r"step-\d{1,18}")


# The newest complete checkpoint.


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a stage. Skip incomplete ones with a warning."""
    for checkpoint in reversed(checkpoints(folder)):
        reason = skip_reason(checkpoint)
        if reason is None:
            return checkpoint
        rule = f"checkpoint is incomplete or corrupt ({reason}). Skipping it"
        warn("training.checkpoint_incomplete", rule, place=checkpoint)
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a stage, the oldest first."""
    return sorted(path for path in (folder / "checkpoints").glob("step-*") if _CHECKPOINT.fullmatch(path.name))


def skip_reason(checkpoint: Path) -> str | None:
    """Return why a checkpoint cannot be used, or None if every file is as the manifest has it."""
    damage = find_damage(checkpoint)
    if damage is not None:
        return f"{damage.file.name}: {damage.reason}"
    try:
        is_finished(checkpoint)  # reads the step, which a resumed stage needs
    except (OSError, ValueError, KeyError, TypeError):
        return f"{_STATE}: it has no step"
    return None


def step_of(checkpoint: Path | None) -> int:
    """Return the optimizer step of a checkpoint, or 0 for None."""
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


def checkpoint_of(folder: Path, step: int) -> Path:
    """Return the checkpoint of an optimizer step of a stage, which may be missing."""
    return folder / "checkpoints" / f"step-{step:08d}"


def stateful_callbacks(checkpoint: Path) -> dict[str, Any]:
    """Return the states of callbacks in a checkpoint, by the names of their classes."""
    found: dict[str, Any] = read_json(checkpoint / _STATE).get("stateful_callbacks") or {}
    return found


def is_finished(checkpoint: Path) -> bool:
    """Return whether the last optimizer step of the stage is in the checkpoint."""
    state = read_json(checkpoint / _STATE)
    return bool(state["global_step"] >= state["max_steps"])


# What is restored, and what is removed.


def restore_parameters(backend: Backend, policy: Policy, recipe: Recipe, checkpoint: Path | None) -> None:
    """Load the parameters of a checkpoint that the trainer does not load itself: those of full fine-tuning.

    transformers looks for parameter names that differ from the saved ones, and would silently load nothing.
    """
    if checkpoint and recipe.model.tuning == "full":
        backend.restore(policy, checkpoint)


def remove_later_metrics(run: RunFolder, stage: str, step: int) -> None:
    """Remove the steps after ``step`` from metrics.jsonl, because training repeats them."""
    if is_main_process() and (count := run.remove_metrics(stage, step)):
        warn(
            "training.metrics_removed",
            f"{count} lines of metrics.jsonl after step {step} are removed, because these steps are repeated",
            place=stage,
        )


def remove_partial(folder: Path) -> None:
    """Remove the incomplete checkpoint of an interrupted start. Nothing resumes from it."""
    if is_main_process():
        remove_tree(folder / PARTIAL)
    distributed.wait_for_all()


# What is written for a later resume.


class Checkpoints(TrainerCallback):
    """Moves each complete checkpoint to ``checkpoints/step-N``. Keeps the newest ``keep`` and that of ``kept_step``.

    transformers writes into the final folder and resumes from any folder there, even an incomplete one
    (transformers#35033). Here, a folder under ``checkpoints`` is complete or absent.
    """

    def __init__(self, folder: Path, keep: int, kept_step: Callable[[], int | None] = lambda: None) -> None:
        self.folder, self.keep, self.kept_step = folder, keep, kept_step

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
        target = checkpoint_of(self.folder, step)
        # A resumed stage recreates the frozen reference of the KL term from its start weights. If the checkpoint had
        # the reference adapter too, transformers would not load the trained adapter.
        shutil.rmtree(source / "ref", ignore_errors=True)
        flush_folder(source)
        write_manifest(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_tree(target)
        source.rename(target)
        # A later checkpoint is a damaged one that was skipped. It is replaced when training reaches its step.
        reached = [one for one in checkpoints(self.folder) if step_of(one) <= step]
        for old in reached[: -self.keep]:
            if step_of(old) != self.kept_step():
                remove_tree(old)


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
