"""Validation within SFT and GRPO: figures, early stopping, the best checkpoint, and resume to the same decisions."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.problems import raises
from tests.helpers.training import ADAPTER, StopAfter, adapter_of, context_of, only, same
from toolkit.data.splits import Leak, LeakReport
from toolkit.errors import DataError, Interrupted, TrainingError
from toolkit.evaluation.stage_context import Context
from toolkit.models.hf import HfBackend
from toolkit.models.prompts import Prompts
from toolkit.recipe import Evaluate, Recipe, Validation
from toolkit.training import train as training
from toolkit.training.grpo import train_grpo
from toolkit.training.results import GrpoResult, SftResult, ValidationResult
from toolkit.training.resume import checkpoints, step_of
from toolkit.training.sft import train_sft
from toolkit.training.validation import Validator, judge

WORK: Mapping[str, Callable[[Context], SftResult | GrpoResult]] = {"sft": train_sft, "grpo": train_grpo}
ROWS = {"data": {"synthetic": {"kind": "chest", "train": 24, "validation": 6, "test": 4, "size": 64}}}


def validated(stage: str, folder: Path, name: str, section: Mapping[str, Any] | None, **tables: Any) -> Recipe:
    """A recipe of one stage with 6 validation rows, and [validation] unless ``section`` is None."""
    changes = {**ROWS, **tables} if section is None else {**ROWS, "validation": dict(section), **tables}
    answers = Evaluate(batch_size=4, max_completion_tokens=16)
    return only(stage, folder, name, changes).model_copy(update={"evaluate": answers})


def run(recipe: Recipe, stage: str) -> tuple[SftResult | GrpoResult, list[dict[str, Any]]]:
    """Train, and return the result and the lines of metrics.jsonl."""
    with context_of(recipe) as context:
        result = WORK[stage](context)
        context.run.mark_done(stage, result)
        assert context.run.result(stage, type(result)) == result
        return result, [dict(line) for line in context.run.metrics()]


def validations(result: SftResult | GrpoResult) -> ValidationResult:
    assert result.training.validation is not None
    return result.training.validation


OVERFIT: dict[str, Any] = {
    "sft": {"learning_rate": 1e-2, "max_steps": 12, "batch_size": 1, "accumulation": 1},
    "data": {**ROWS["data"], "limit_train": 1},
    "lora": {"dropout": 0.0},
    "run": {"checkpoint_steps": 100, "keep_checkpoints": 1},
}
"""Twelve passes over one row. The loss of other rows falls, then rises."""


def test_a_value_counts_as_an_improvement_only_above_the_minimum() -> None:
    falling = [1.0, 0.9, 0.95, 0.92]
    assert judge(falling, Validation(patience=2), lower_is_better=True).stops
    assert not judge(falling, Validation(patience=3), lower_is_better=True).stops
    assert judge(falling, Validation(), lower_is_better=True).best == 1
    rising = [0.5, 0.52, 0.54, 0.56, 0.58]
    assert judge(rising, Validation(patience=2), lower_is_better=False).waited == 0
    assert judge(rising, Validation(patience=9, min_improvement=0.03), lower_is_better=False).waited == 0
    assert judge(rising, Validation(patience=9, min_improvement=0.05), lower_is_better=False).waited == 1
    slow = judge(rising, Validation(patience=9, min_improvement=1), lower_is_better=False)
    assert (slow.best, slow.waited) == (4, 4)  # the best one is the best, however small the difference


@pytest.mark.parametrize("lower", [False, True])
def test_equal_values_keep_the_earliest_and_count_as_no_improvement(lower: bool) -> None:
    found = judge([0.5, 0.5, 0.5], Validation(patience=2), lower_is_better=lower)
    assert (found.best, found.waited, found.stops) == (0, 2, True)


@pytest.mark.slow
def test_an_overfitting_run_stops_early_and_uses_the_best_checkpoint(tmp_path: Path) -> None:
    every = {"every_steps": 1, "patience": 2}
    stopped, lines = run(validated("sft", tmp_path, "stopped", every, **OVERFIT), "sft")
    found = validations(stopped)
    losses = [line["validation/loss"] for line in lines if "validation/loss" in line]
    best = min(range(len(losses)), key=lambda number: losses[number])
    assert stopped.training.steps == len(losses) < 12
    assert len(losses) == best + 1 + 2
    assert (found.best_step, found.best_value, found.weights_step) == (best + 1, losses[best], best + 1)
    assert found.metric == "loss"
    assert found.lower_is_better
    assert found.stopped_early is not None
    assert found.rows == 6
    assert [one.figures["loss"].value for one in found.validations] == losses

    whole, _ = run(validated("sft", tmp_path, "whole", None, **OVERFIT), "sft")
    rising = {"every_steps": 6, "weights": "last", "patience": 1}  # the last validation is worse than the first
    last, _ = run(validated("sft", tmp_path, "last", rising, **OVERFIT), "sft")
    assert whole.training.steps == last.training.steps == 12
    assert (validations(last).best_step, validations(last).weights_step) == (6, 12)
    assert validations(last).stopped_early is None  # it is the last step anyway
    used, end = (adapter_of(validated("sft", tmp_path, name, None, **OVERFIT), "sft") for name in ("stopped", "whole"))
    assert not same(used, end)
    assert same(end, adapter_of(validated("sft", tmp_path, "last", None, **OVERFIT), "sft"))


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_beside_the_newest_and_its_weights_are_used(tmp_path: Path) -> None:
    recipe = validated("sft", tmp_path, "kept", {"every_steps": 1}, **OVERFIT)
    result, _ = run(recipe, "sft")
    best = validations(result).best_step
    assert best < 12
    stage = recipe.run_folder / "stages" / "sft"
    assert [step_of(one) for one in checkpoints(stage)] == [best, 12]
    assert same(adapter_of(recipe, "sft"), load_file(checkpoints(stage)[0] / ADAPTER))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_validation_does_not_change_the_training(tmp_path: Path, stage: str) -> None:
    plain, before = run(validated(stage, tmp_path, "plain", None), stage)
    seen, after = run(validated(stage, tmp_path, "seen", {"every_steps": 1, "weights": "last"}), stage)
    assert plain.training.validation is None
    names = ("loss", "grad_norm", "learning_rate", "num_tokens", "reward", "completions/mean_length")
    assert [[line.get(name) for name in names] for line in before] == [
        [line.get(name) for name in names] for line in after
    ]
    assert len(validations(seen).validations) == 4
    assert same(*(adapter_of(validated(stage, tmp_path, name, None), stage) for name in ("plain", "seen")))


@pytest.mark.slow
def test_grpo_validates_the_reward_and_the_score_of_greedy_completions(tmp_path: Path) -> None:
    result, lines = run(validated("grpo", tmp_path, "small", {"every_steps": 2}), "grpo")
    found = validations(result)
    assert (found.metric, found.lower_is_better) == ("reward", False)
    assert [one.step for one in found.validations] == [2, 4]
    for one in found.validations:
        assert one.figures.keys() == {"accuracy", "reward", "unreadable", "truncated"}
        for figure in one.figures.values():
            assert figure.low is not None
            assert figure.high is not None
            assert figure.low <= figure.value <= figure.high
        line = next(line for line in lines if line["step"] == one.step)
        assert line["validation/reward"] == one.figures["reward"].value
        assert line["validation/n"] == 6
        assert "loss" in line  # the training's own line of this step


@pytest.mark.slow
def test_the_last_optimizer_step_is_validated_too(tmp_path: Path) -> None:
    result, _ = run(validated("sft", tmp_path, "last", {"every_steps": 3}), "sft")
    assert [one.step for one in validations(result).validations] == [3, 4]


@pytest.mark.slow
def test_the_validation_loss_is_the_mean_over_the_answer_tokens(tmp_path: Path) -> None:
    recipe = validated("sft", tmp_path, "small", {"every_steps": 4, "weights": "last"})
    with context_of(recipe) as context:
        value = validations(train_sft(context)).validations[-1].figures["loss"].value
        policy = HfBackend().load(recipe, context.run.weights_folder("sft"), trainable=False)
        prompts = Prompts.of(recipe, context.images)
        rows = [prompts.row(sample, answer=True) for sample in context.data.validation]
        log_probs = HfBackend().log_probs(policy, rows, [row.answer or "" for row in rows])
    tokens = [value for row in log_probs for value in row]
    assert value == pytest.approx(-sum(tokens) / len(tokens), rel=1e-5)


def _stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    plain = training.training_callbacks
    patch.setattr(training, "training_callbacks", lambda ctx, *rest: [StopAfter(ctx, step), *plain(ctx, *rest)])


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "step"), [("sft", 2), ("sft", 3), ("grpo", 2)])
def test_a_resumed_run_makes_the_same_decisions(
    tmp_path: Path, stage: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 2 and 4 are validated. A signal at step 2 comes before its validation, which the resumed run makes."""
    section = {"every_steps": 2, "patience": 1}
    whole, _ = run(validated(stage, tmp_path, "whole", section), stage)
    halved = validated(stage, tmp_path, "halved", section)
    with context_of(halved) as context, monkeypatch.context() as patch:
        _stop_at(step, patch)
        with pytest.raises(Interrupted):
            WORK[stage](context)
    result, lines = run(halved, stage)
    assert result.training.resumed_from == f"step-{step:08d}"
    assert validations(result) == validations(whole)
    assert [line["step"] for line in lines if "validation/n" in line] == [
        one.step for one in validations(whole).validations
    ]
    assert same(*(adapter_of(validated(stage, tmp_path, name, None), stage) for name in ("whole", "halved")))


@pytest.mark.slow
def test_an_interrupted_validation_that_stops_the_training_makes_no_further_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"every_steps": 1, "patience": 2}
    whole, _ = run(validated("sft", tmp_path, "whole", section, **OVERFIT), "sft")
    last = whole.training.steps
    halved = validated("sft", tmp_path, "halved", section, **OVERFIT)
    with context_of(halved) as context, monkeypatch.context() as patch:
        _stop_at(last, patch)
        with pytest.raises(Interrupted):
            train_sft(context)
    result, lines = run(halved, "sft")
    assert result.training.steps == last
    assert validations(result) == validations(whole)
    assert max(line["step"] for line in lines) == last
    assert same(*(adapter_of(validated("sft", tmp_path, name, None, **OVERFIT), "sft") for name in ("whole", "halved")))


@pytest.mark.slow
def test_a_stage_that_stopped_early_is_not_trained_further_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = validated("sft", tmp_path, "crash", {"every_steps": 1, "patience": 2}, **OVERFIT)

    def crash(*_: Any) -> None:
        raise OSError("no space left")

    with context_of(recipe) as context, monkeypatch.context() as patch:
        patch.setattr(training, "save_weights", crash)
        with pytest.raises(OSError, match="no space"):
            train_sft(context)
    stopped = step_of(checkpoints(recipe.run_folder / "stages" / "sft")[-1])
    result, lines = run(recipe, "sft")
    assert result.training.steps == stopped == max(line["step"] for line in lines)
    assert validations(result).weights_step == validations(result).best_step < stopped
    stage = recipe.run_folder / "stages" / "sft"
    assert same(adapter_of(recipe, "sft"), load_file(checkpoints(stage)[0] / ADAPTER))


@pytest.mark.slow
def test_a_missing_best_checkpoint_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = validated("sft", tmp_path, "missing", {"every_steps": 1, "patience": 2}, **OVERFIT)
    restore = Validator.finish

    def remove_first(self: Validator, backend: Any, policy: Any, folder: Path, last: int) -> Any:
        (checkpoints(folder)[0] / ADAPTER).unlink()
        return restore(self, backend, policy, folder, last)

    monkeypatch.setattr(Validator, "finish", remove_first)
    with context_of(recipe) as context, raises(TrainingError, "training.best_checkpoint_damaged"):
        train_sft(context)


@pytest.mark.slow
def test_a_measurement_leaves_the_random_state_and_the_mode(tmp_path: Path) -> None:
    recipe = validated("sft", tmp_path, "state", {})
    with context_of(recipe) as context:
        backend = HfBackend()
        policy = backend.load(recipe, None, trainable=True)
        validator = Validator.of(context, "sft", Prompts.of(recipe, context.images))
        assert validator is not None
        before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=True)
        first = validator.measure(backend, policy, interruptible=False)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == random.getstate()
        np.testing.assert_equal(before[2], np.random.get_state(legacy=True))
        assert policy.model.training
        assert first == validator.measure(backend, policy, interruptible=False)
        assert first is not None
        assert math.isfinite(first["loss"].value)


def test_the_sample_is_fixed_and_from_the_validation_split(tmp_path: Path) -> None:
    recipe = validated("sft", tmp_path, "sample", {"limit": 3})
    with context_of(recipe) as context:
        prompts = Prompts.of(recipe, context.images)
        first, again = (Validator(context, "sft", prompts, None).samples for _ in range(2))
        ids = [sample.id for sample in first]
        assert ids == [sample.id for sample in again]
        assert len(ids) == 3
        assert set(ids) <= {sample.id for sample in context.data.validation}


def test_an_empty_or_leaking_validation_split_is_rejected(tmp_path: Path) -> None:
    recipe = validated("sft", tmp_path, "rejected", {})
    with context_of(recipe) as context:
        empty = replace(context, data=replace(context.data, validation=context.data.validation[:0]))
        with raises(DataError, "data.validation_split_empty"):
            train_sft(empty)
        leak = Leak("group", "train", "validation", 1, (1, 1), ((0, 0),))
        with raises(DataError, "data.validation_split_leaks") as caught:
            train_sft(replace(context, data=replace(context.data, leaks=LeakReport((leak,)))))
        assert caught.problem.value == "1 group of validation also in train"
