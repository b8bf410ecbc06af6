"""Warm-up, learning rates of parts of the model, and the variants of LoRA, as the trainer and peft have them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.exports import export_of, merged_of, verified
from tests.helpers.problems import raises
from tests.helpers.training import Tables, context_of, only, small_recipe
from toolkit.errors import TrainingError
from toolkit.models import lora as adapter
from toolkit.models.backend import Policy, TrainingJob
from toolkit.models.families import PROJECTOR, VISION
from toolkit.models.hf import HfBackend
from toolkit.models.prompts import Prompts
from toolkit.pipeline import run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe
from toolkit.training.grpo import build_grpo, make_reward_scorer
from toolkit.training.rewards import recipe_rewards
from toolkit.training.sft import build_sft


def built(recipe: Recipe, stage: str = "sft") -> tuple[Any, Policy]:
    """Return the trainer of a stage, and its policy."""
    backend = HfBackend()
    with context_of(recipe) as context:
        prompts, samples = Prompts.of(recipe, context.images), context.data.train
        table = recipe_rewards(recipe)
        scorer = make_reward_scorer(prompts.task, table, samples, recipe.grpo.generations) if recipe.grpo else None
        rows = prompts.rows(samples, answer=stage == "sft")
        job = TrainingJob(recipe, rows, len(samples), context.run.stage_folder(stage), scorer=scorer)
        policy = backend.load(recipe, None, trainable=True)
        return {"sft": build_sft, "grpo": build_grpo}[stage](backend, policy, job), policy


def rates(trainer: Any, steps: int) -> list[float]:
    """Return the learning rate of each optimizer step, relative to the peak."""
    trainer.create_optimizer_and_scheduler(num_training_steps=steps)
    found = []
    for _ in range(steps):
        found.append(trainer.lr_scheduler.get_last_lr()[0] / trainer.args.learning_rate)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # 0.15 of 10 steps is rounded up to 2. Then 8 steps of linear decay.
        ({"warmup_fraction": 0.15}, [0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ({"warmup_steps": 2}, [0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ({"warmup_fraction": 0.4, "schedule": "constant"}, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]),
        ({"warmup_steps": 4, "schedule": "constant"}, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "constant"}, [1] * 10),
    ],
)
def test_the_learning_rate_rises_during_the_warmup(
    tmp_path: Path, settings: dict[str, Any], expected: list[float]
) -> None:
    trainer, _ = built(only("sft", tmp_path, changes={"sft": {"max_steps": 10, **settings}}))
    assert rates(trainer, 10) == pytest.approx(expected)


def groups_of(trainer: Any) -> dict[str, set[tuple[float, float]]]:
    """Return part of the model -> learning rate and weight decay of its parameters in the optimizer."""
    optimizer, found = trainer.create_optimizer(), dict[str, set[tuple[float, float]]]()
    names = {id(value): name for name, value in trainer.model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for value in group["params"]:
            name = names[id(value)]
            part = "projector" if PROJECTOR.search(name) else "vision" if VISION.search(name) else "language"
            found.setdefault(part, set()).add((group["lr"], group["weight_decay"]))
            seen.append(name)
    assert sorted(seen) == sorted(name for name, value in trainer.model.named_parameters() if value.requires_grad)
    return found


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_the_vision_tower_has_its_own_learning_rate(tmp_path: Path, stage: str) -> None:
    section = {"learning_rate": 1e-3, "vision_learning_rate": 1e-5, "weight_decay": 0.1}
    trainer, _ = built(only(stage, tmp_path, changes={"lora": {"vision": True}, stage: section}), stage)
    assert groups_of(trainer) == {"language": {(1e-3, 0.1)}, "vision": {(1e-5, 0.1)}}


def test_full_tuning_has_three_learning_rates_and_decays_as_without_them(tmp_path: Path) -> None:
    section = {"learning_rate": 1e-3, "weight_decay": 0.1}
    own = {"vision_learning_rate": 1e-5, "projector_learning_rate": 1e-4}
    full = {"model": {"tuning": "full", "precision": "32bit"}}
    plain, _ = built(only("sft", tmp_path, "plain", {**full, "sft": section}))
    trainer, _ = built(only("sft", tmp_path, "own", {**full, "sft": {**section, **own}}))
    found = groups_of(trainer)
    assert {part: {rate for rate, _ in pairs} for part, pairs in found.items()} == {
        "language": {1e-3},
        "vision": {1e-5},
        "projector": {1e-4},
    }
    decay = {part: {decay for _, decay in pairs} for part, pairs in found.items()}
    assert decay == {part: {decay for _, decay in pairs} for part, pairs in groups_of(plain).items()}


def test_a_schedule_scales_each_learning_rate(tmp_path: Path) -> None:
    section = {"learning_rate": 1e-3, "vision_learning_rate": 1e-5, "warmup_steps": 2, "max_steps": 4}
    trainer, _ = built(only("sft", tmp_path, changes={"lora": {"vision": True}, "sft": section}))
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {5e-4, 5e-6}


def test_a_learning_rate_of_a_part_that_is_not_trained_is_an_error(tmp_path: Path) -> None:
    """The projector of Gemma 3 is a parameter of its own, which an adapter leaves out."""
    section = {"projector_learning_rate": 1e-4}
    with raises(TrainingError, "training.part_not_trained") as caught:
        built(only("sft", tmp_path, changes={"lora": {"vision": True}, "sft": section}))
    assert (caught.problem.place, caught.problem.value) == ("projector_learning_rate", 1e-4)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / 2)])
def test_the_update_is_scaled_by_the_rank_or_its_root(tmp_path: Path, rslora: bool, scale: float) -> None:
    recipe = small_recipe(tmp_path, {"lora": {"r": 4, "alpha": 8, "rslora": rslora}})
    model = HfBackend().load(recipe, None, trainable=True).model
    assert {part.scaling["default"] for part in model.modules() if hasattr(part, "lora_A")} == {scale}


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_a_saved_variant_is_loaded_as_it_is(tmp_path: Path, variant: str) -> None:
    recipe, backend = small_recipe(tmp_path, {"lora": {variant: True}}), HfBackend()
    policy = backend.load(recipe, None, trainable=True)
    with torch.no_grad():
        for name, value in policy.model.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                value.add_(0.1)
    backend.save(policy, tmp_path / "saved")
    again = backend.load(recipe, tmp_path / "saved", trainable=True)
    assert adapter.differences(again.model, recipe.lora) == ""
    assert f"{variant} is True, not False" in adapter.differences(again.model, small_recipe(tmp_path).lora)
    before = {name: value for name, value in policy.model.named_parameters() if "lora_" in name}
    after = {name: value for name, value in again.model.named_parameters() if "lora_" in name}
    assert before.keys() == after.keys()
    assert any("magnitude" in name for name in after) == (variant == "dora")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("variants", [{"rslora": True}, {"dora": True}, {"rslora": True, "dora": True}])
def test_a_variant_trains_in_sft_and_grpo_and_its_merged_model_answers_alike(
    tmp_path: Path, variants: dict[str, bool]
) -> None:
    tables: Tables = {"lora": variants, "evaluate": {"limit": 2}, "export": {"to": ["merged"], "verify": 4}}
    recipe = small_recipe(tmp_path, tables)
    run = run_recipe(recipe, STAGES).run
    assert verified(merged_of(export_of(run))).differing == 0
    weights = [load_file(run.weights_folder(stage) / "adapter_model.safetensors") for stage in ("sft", "grpo")]
    assert any("magnitude" in name for name in weights[0]) == variants.get("dora", False)
    for name in weights[0]:
        assert not torch.equal(weights[0][name], weights[1][name]), name
    losses = [line["loss"] for line in run.metrics() if line["stage"] == "sft" and "loss" in line]
    assert losses[-1] < losses[0]
