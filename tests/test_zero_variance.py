"""Zero-variance groups: exact advantages of 0, and an update without their passes that equals one with them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl.trainer.utils import nanstd

from tests.helpers.problems import raises
from tests.helpers.training import context_of, small_recipe
from toolkit.errors import TrainingError
from toolkit.models import choose_backend
from toolkit.models.backend import Completion, RewardScorer, TrainingJob
from toolkit.models.prompts import Prompts
from toolkit.runfolder.usage import counts
from toolkit.training.grpo import build_grpo
from toolkit.training.zero_variance import clear_advantages, loss_fraction, rows_with_advantage, select_rows, zero_loss


def trl_advantages(rewards: Sequence[float], generations: int) -> torch.Tensor:
    """The formula of TRL, in float32."""
    rewards_PG = torch.tensor(rewards).view(-1, generations)
    centred_PG = rewards_PG - torch.nanmean(rewards_PG, dim=1, keepdim=True)
    advantages_PG: torch.Tensor = centred_PG / (nanstd(rewards_PG, dim=1)[:, None] + 1e-4)
    return advantages_PG.flatten()


@pytest.mark.parametrize("generations", [6, 8, 16])
def test_rounding_errors_of_equal_rewards_become_zero(generations: int) -> None:
    values = [number / 100 for number in range(300)]
    rounded = trl_advantages([value for value in values for _ in range(generations)], generations)
    assert 0 < int((rounded != 0).sum()) < len(rounded)
    assert not clear_advantages(rounded, generations).any()


def test_groups_with_different_rewards_keep_their_advantages() -> None:
    advantages = trl_advantages([0.7, 0.7, 0.7, 0.6999, 0.1, 0.1, 0.1, 0.1], 4)
    cleared = clear_advantages(advantages, 4)
    assert torch.equal(cleared[:4], advantages[:4])
    assert cleared[:4].all()
    assert not cleared[4:].any()


def test_a_completion_without_any_reward_does_not_hide_the_rounding_error_of_its_group() -> None:
    rounded = trl_advantages([0.08] * 6, 6)
    assert rounded.all()
    rounded[2] = 0.0  # TRL sets the advantage of a completion to 0 if no reward applies to it
    assert not clear_advantages(rounded, 6).any()


def test_selected_rows_keep_their_images() -> None:
    grids = torch.tensor([[1, 2, 2], [1, 2, 4], [1, 2, 2]])
    patches = torch.arange(16.0).view(16, 1)
    batch = {
        "completion_ids": torch.arange(6).view(3, 2),
        "advantages": torch.tensor([0.5, 0.0, -0.5]),
        "num_images": [1, 0, 2],
        "image_grid_thw": grids,
        "pixel_values": patches,
        "num_items_in_batch": torch.tensor(7),
    }
    part = select_rows(batch, rows_with_advantage(batch))
    assert part["completion_ids"].tolist() == [[0, 1], [4, 5]]
    assert part["num_images"] == [1, 2]
    assert part["image_grid_thw"].tolist() == grids.tolist()
    assert part["pixel_values"].flatten().tolist() == list(range(16))
    last = select_rows(batch, [2])
    assert last["pixel_values"].flatten().tolist() == list(range(4, 16))
    assert int(last["num_items_in_batch"]) == 7
    listed = select_rows({**batch, "pixel_values": [patches[:4], None, patches[4:]], "image_grid_thw": None}, [2])
    assert listed["pixel_values"][0].flatten().tolist() == list(range(4, 16))


def test_images_without_a_grid_stay_with_their_completion() -> None:
    batch = {"advantages": torch.ones(2), "num_images": [2, 1], "pixel_values": torch.arange(3.0).view(3, 1)}
    assert select_rows(batch, [0])["pixel_values"].flatten().tolist() == [0, 1]
    assert select_rows(batch, [1])["pixel_values"].flatten().tolist() == [2]
    with raises(TrainingError, "training.pass_not_separable"):
        select_rows({**batch, "image_sizes": torch.ones(3, 2)}, [1])


def test_the_fraction_follows_what_a_loss_divides_by() -> None:
    whole = {"advantages": torch.zeros(4), "completion_mask": torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]])}
    part = {"advantages": torch.zeros(1), "completion_mask": torch.tensor([[1, 0]])}
    assert loss_fraction("grpo", part, whole) == loss_fraction("dr_grpo", part, whole) == 0.25
    assert loss_fraction("bnpo", part, whole) == pytest.approx(1 / 7)
    assert loss_fraction("dapo", part, whole) == 1


def test_a_loss_of_zero_moves_an_optimizer_like_gradients_of_zero() -> None:
    def trained(close: Callable[[torch.nn.Module], None]) -> list[float]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        close(layer)
        optimizer.step()
        return layer.weight.flatten().tolist()

    zeros = trained(lambda layer: (layer(torch.ones(1, 2)) * 0).sum().backward())
    assert trained(lambda layer: zero_loss(layer).backward()) == zeros
    assert trained(lambda layer: None) != zeros


class Gradients(TrainerCallback):
    """Copies the gradients of each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        found = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
        self.steps.append({name: gradient.clone() for name, gradient in found.items() if gradient is not None})


def scores(equal: Callable[[int], bool]) -> Callable[..., Any]:
    """Rewards by length. Groups of 4 whose number of the step is ``equal`` have the same reward for all."""

    def score(
        numbers: Sequence[int], completions: Sequence[Completion]
    ) -> tuple[list[Mapping[str, float | None]], dict[str, float]]:
        rewards = [0.7 if equal(place // 4) else (len(one.text) % 7) / 7 for place, one in enumerate(completions)]
        return [{"length": reward} for reward in rewards], {}

    return score


def train(folder: Path, *, skip: bool, equal: Callable[[int], bool], **grpo: Any) -> tuple[Gradients, Any]:
    settings = {"max_steps": 3, "micro_batch": 4, "weight_decay": 0.1, "prompts_per_step": 2, **grpo}
    tables = {"lora": {"dropout": 0.0}, "grpo": settings}
    with context_of(small_recipe(folder, tables)) as context:
        backend = choose_backend(context.recipe.model)
        policy = backend.load(context.recipe, None, trainable=True)
        samples, prompts = context.data.train, Prompts.of(context.recipe, context.images)
        gradients = Gradients()
        scorer = RewardScorer({"length": 1.0}, scores(equal))
        job = TrainingJob(
            context.recipe, prompts.rows(samples), len(samples), folder, callbacks=[gradients], scorer=scorer
        )
        trainer = build_grpo(backend, policy, job)
        assert trainer.skip_zero_variance
        trainer.skip_zero_variance = skip
        trainer.train()
    return gradients, trainer


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dapo", "grpo", "bnpo", "dr_grpo", "cispo"])
def test_an_update_without_zero_variance_groups_has_equal_gradients(loss: str, tmp_path: Path) -> None:
    def equal(group: int) -> bool:
        return group % 2 == 0

    settings = {"loss": loss, "epsilon_high": 5.0}
    whole, _ = train(tmp_path / "whole", skip=False, equal=equal, **settings)
    part, trainer = train(tmp_path / "part", skip=True, equal=equal, **settings)
    assert len(whole.steps) == len(part.steps) == 3
    for expected, found in zip(whole.steps, part.steps, strict=True):
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        assert largest > 0
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, rtol=0, atol=1e-6 * largest)
    lines = [line for line in trainer.state.log_history if "rows_without_advantage" in line]
    assert [line["rows_without_advantage"] for line in lines] == [0.5] * 3


@pytest.mark.slow
def test_a_step_without_any_advantage_has_gradients_of_zero(tmp_path: Path) -> None:
    gradients, trainer = train(tmp_path, skip=True, equal=lambda group: True)
    for step in gradients.steps:
        assert step
        assert not any(bool(gradient.any()) for gradient in step.values())
    assert trainer.state.log_history[0]["rows_without_advantage"] == 1


@pytest.mark.slow
def test_the_counted_pass_is_the_first_one_with_an_advantage(tmp_path: Path) -> None:
    groups = itertools.count()

    def equal(group: int) -> bool:
        return next(groups) < 2 * 8  # called for each of the 8 completions of the steps 1 and 2

    before = counts()
    train(tmp_path, skip=True, equal=equal)
    counted = counts() - before
    assert 0 < counted.counted_tokens <= counted.trained_tokens
    assert counted.counted_flops > counted.counted_formula * 0.5


@pytest.mark.slow
def test_a_kl_term_keeps_every_row(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"grpo": {"beta": 0.1}})
    with context_of(recipe) as context:
        backend = choose_backend(recipe.model)
        policy = backend.load(recipe, None, trainable=True)
        rows = Prompts.of(recipe, context.images).rows(context.data.train)
        scorer = RewardScorer({"length": 1.0}, scores(lambda group: True))
        assert not build_grpo(backend, policy, TrainingJob(recipe, rows, 4, tmp_path, scorer=scorer)).skip_zero_variance
