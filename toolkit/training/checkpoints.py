"""Checkpoints of a training stage, and what a stage needs to resume from one with the same numbers.

A checkpoint is a folder ``checkpoints/step-N`` with the trained weights, the optimizer, the schedule, the random state
and a manifest. A stage resumes from the newest complete one (see ``train.train``).
"""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.errors import warn
from toolkit.models import Backend
from toolkit.models.backend import Policy
from toolkit.models.random_state import RandomState
from toolkit.runfolder import flush_folder, is_main_process, read_json, write_json
from toolkit.training import distributed

PARTIAL = "partial"
"""The folder that the trainer writes to. A complete checkpoint is moved out of it by a rename."""

MANIFEST = "manifest.json"
"""File with the names and sizes of a checkpoint's files."""


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a stage. Skip incomplete ones with a warning."""
    for checkpoint in reversed(checkpoints(folder)):
        if is_complete(checkpoint):
            return checkpoint
        warn("training.checkpoint_incomplete", "checkpoint is incomplete or corrupt. Skipping it", place=checkpoint)
    return None


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


def step_of(checkpoint: Path | None) -> int:
    """Return the optimizer step of a checkpoint, or 0 for None."""
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


def is_finished(checkpoint: Path) -> bool:
    """Return whether the last optimizer step of the stage is in the checkpoint."""
    state = read_json(checkpoint / "trainer_state.json")
    return bool(state["global_step"] >= state["max_steps"])


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
