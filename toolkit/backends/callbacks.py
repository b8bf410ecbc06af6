"""What happens between optimiser steps: progress, whole checkpoints, a clean stop on a signal."""

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.backends import together
from toolkit.errors import TrainingError
from toolkit.run import StopRequest, flush_folder, is_main, read_json, write_json

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
        together.meet()  # each process has written its own random state
        if is_main():
            self._keep(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", state.global_step)
        together.meet()

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
        if number := together.highest(self.stop.number or 0):
            self.stop.join(number)  # a signal may reach one process of several, or reach them at different steps
        if self.stop.requested and state.global_step < state.max_steps:
            control.should_log = True  # what is not finite is seen in the log, which comes before the checkpoint
            control.should_save = True
            control.should_training_stop = True


class Report(TrainerCallback):
    """Hands each step's figures to ``report(step, steps, figures)``."""

    def __init__(self, report: Callable[[int, int, Mapping[str, float]], None]) -> None:
        self.report = report

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
        _check_finite(figures, state.global_step)
        self.report(state.global_step, state.max_steps, figures)


def _check_finite(figures: Mapping[str, float], step: int) -> None:
    """Raise before a checkpoint of such a step is written, so that the last good one stays."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(figures.get(name, 0.0)):
            raise TrainingError(
                f"{name} must stay finite",
                place=f"step {step}",
                value=figures[name],
                remedy="Lower learning_rate and begin anew with --fresh.",
            )
