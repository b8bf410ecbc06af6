"""float16 with a gradient scaler: a skipped optimizer step is not divergence, and a scale below 1 ends the run.

accelerate creates a scaler on a GPU only. Here its trainer gets torch's scaler for the CPU, and overflows are injected
into gradients.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.amp.grad_scaler import GradScaler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tests.helpers.oom import lines_of, recipe_of, run, small_memory
from tests.helpers.problems import raises
from tests.helpers.training import adapter_of
from toolkit.errors import TrainingError
from toolkit.training import sft
from toolkit.training.callbacks import MetricsReporter

SCALE = 256.0


class Overflow(TrainerCallback):
    """Makes the gradients of some steps infinite, as float16 does. ``seen``: learning rate and scale of each step."""

    def __init__(self, steps: Collection[int]) -> None:
        self.steps, self.now = steps, False
        self.seen: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.now = state.global_step + 1 in self.steps

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        self.seen.append(lr_scheduler.get_last_lr()[0])

    def hook(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf if self.now else gradient


@contextmanager
def float16(patch: pytest.MonkeyPatch, steps: Collection[int], *, scaler: bool = True) -> Iterator[Overflow]:
    build, overflow = sft.build_sft, Overflow(steps)

    def scaled(backend: Any, policy: Any, job: Any) -> Any:
        trainer = build(backend, policy, job)
        if scaler:
            trainer.accelerator.scaler = GradScaler("cpu", init_scale=SCALE)
        trainer.add_callback(overflow)
        next(one for one in policy.model.parameters() if one.requires_grad).register_hook(overflow.hook)
        return trainer

    with patch.context() as inner:
        inner.setattr(sft, "build_sft", scaled)
        yield overflow


@pytest.mark.slow
def test_skipped_steps_are_counted_and_training_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("sft", tmp_path, "skipped", sft={"max_steps": 4, "schedule": "linear"})
    with float16(monkeypatch, {1, 2}) as overflow:
        record = run(recipe, "sft")
    lines = lines_of(recipe)
    assert record.training.skipped_steps == 2
    assert [line.get("skipped_steps") for line in lines] == [1, 1, None, None]
    assert [line.get("loss_scale") for line in lines] == [SCALE / 2, SCALE / 4, None, None]
    assert ["grad_norm" in line for line in lines] == [False, False, True, True]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert overflow.seen[0] == overflow.seen[1] > overflow.seen[2]  # the schedule does not advance with skipped steps
    assert any(value.abs().max() > 0 for name, value in adapter_of(recipe, "sft").items() if "lora_B" in name)


@pytest.mark.slow
def test_without_a_scaler_an_overflow_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        float16(monkeypatch, {2}, scaler=False),
        raises(TrainingError, "training.grad_norm_not_finite") as caught,
    ):
        run(recipe_of("sft", tmp_path, "overflown"), "sft")
    assert caught.problem.place == "step 2"


@pytest.mark.slow
def test_a_scale_below_1_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("sft", tmp_path, "lost", sft={"max_steps": 12, "batch_size": 1, "accumulation": 1})
    with float16(monkeypatch, range(1, 13)), raises(TrainingError, "training.loss_scale_below_one") as caught:
        run(recipe, "sft")
    assert (caught.problem.place, caught.problem.value) == ("step 9", 0.5)
    assert len(lines_of(recipe)) == 8


@pytest.mark.slow
def test_the_scale_survives_oom_recovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("sft", tmp_path, "recovered", sft={"max_steps": 3})
    with small_memory(monkeypatch, fits=1, gradients=True, spared=2), float16(monkeypatch, {1, 3}):
        record = run(recipe, "sft")
    assert record.training.gpu_memory.out_of_memory == 1
    assert [line.get("loss_scale") for line in lines_of(recipe)] == [SCALE / 2, None, SCALE / 4]
    assert record.training.skipped_steps == 2


def test_a_repeated_skipped_step_counts_once() -> None:
    """An error inside ``optimizer.step`` falls back to a checkpoint before steps that are not logged yet."""
    reported: list[dict[str, float]] = []
    report = MetricsReporter(lambda step, steps, figures: reported.append(dict(figures)))
    args, control = TrainingArguments(report_to="none", use_cpu=True), TrainerControl()
    scaler = GradScaler("cpu", init_scale=SCALE)
    skipped = SimpleNamespace(step_was_skipped=True, scaler=scaler)
    report.on_optimizer_step(args, TrainerState(global_step=1), control, optimizer=skipped)  # step 2
    report.on_train_begin(args, TrainerState(global_step=1), control)
    report.on_optimizer_step(args, TrainerState(global_step=1), control, optimizer=skipped)
    report.on_optimizer_step(args, TrainerState(global_step=2), control, optimizer=skipped)
    report.on_log(args, TrainerState(global_step=3), control, logs={"loss": 1.0})
    assert reported[0]["skipped_steps"] == 2


def test_a_non_finite_loss_of_a_skipped_step_is_omitted_from_the_log() -> None:
    reported: list[dict[str, float]] = []
    report = MetricsReporter(lambda step, steps, figures: reported.append(dict(figures)))
    args, state, control = TrainingArguments(report_to="none", use_cpu=True), TrainerState(), TrainerControl()
    Accelerator(cpu=True)  # its optimizer needs an accelerator
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = AcceleratedOptimizer(torch.optim.SGD([parameter]), scaler=GradScaler("cpu", init_scale=SCALE))
    for gradient in (math.inf, 1.0):
        optimizer.scaler.scale(parameter.sum()).backward()
        parameter.grad = torch.full((2,), gradient)
        optimizer.step()
        optimizer.zero_grad()
        report.on_optimizer_step(args, state, control, optimizer=optimizer)
    report.on_log(args, state, control, logs={"loss": math.inf, "grad_norm": 1.0, "entropy": 0.5})
    assert reported == [{"grad_norm": 1.0, "entropy": 0.5, "skipped_steps": 1.0, "loss_scale": SCALE / 2}]
    with raises(TrainingError, "training.loss_not_finite"):  # no step was skipped since
        report.on_log(args, state, control, logs={"loss": math.nan})
