"""The image check: training does not begin if the model ignores its images."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.problems import raises
from tests.helpers.training import context_of, length_reward, small_recipe
from toolkit.errors import TrainingError
from toolkit.evaluation.stage_context import Context
from toolkit.models.backend import Policy, Row
from toolkit.models.hf import HfBackend
from toolkit.models.prompts import Prompts
from toolkit.training.grpo import train_grpo
from toolkit.training.preflight import check_images_change_loss, check_images_used
from toolkit.training.sft import train_sft


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("images")
    tables = {"lora": {"dropout": 0.5}, "rewards": length_reward(folder)}
    with context_of(small_recipe(folder, tables)) as made:
        yield made


@pytest.fixture(scope="module")
def policy(context: Context) -> Policy:
    return HfBackend().load(context.recipe, None, trainable=True)


def blinded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the pixels of all models that are loaded from now on with zeros."""
    load = HfBackend.load

    def blind(self: HfBackend, *args: Any, **options: Any) -> Policy:
        policy = load(self, *args, **options)
        whole = policy.model.get_base_model()
        seeing = whole.model.get_image_features
        whole.model.get_image_features = lambda pixels, **rest: seeing(torch.zeros_like(pixels), **rest)
        return policy

    monkeypatch.setattr(HfBackend, "load", blind)


def test_swapped_images_change_the_answers_loss(context: Context, policy: Policy) -> None:
    """The noise of dropout would hide a model that ignores its images."""
    random = torch.get_rng_state()
    assert check_images_used(HfBackend(), policy, Prompts.of(context.recipe, context.images), context.data.train)
    assert torch.equal(torch.get_rng_state(), random)  # the check does not change the random state
    assert policy.model.training


def test_the_answers_loss_is_that_of_the_batch(context: Context, policy: Policy) -> None:
    row = Prompts.of(context.recipe, context.images).row(context.data.train[0], answer=True)
    from toolkit.models.collate import IGNORED, collate

    batch = collate(policy, [row])
    policy.model.eval()
    with torch.no_grad():
        logits = policy.model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    policy.model.train()
    chosen = batch["labels"][0, 1:] != IGNORED
    logps = logits[0, :-1].log_softmax(-1)[chosen].gather(1, batch["labels"][0, 1:][chosen][:, None])
    assert HfBackend().answer_loss(policy, row) == pytest.approx(-float(logps.mean()), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_model_that_ignores_images_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    blinded(monkeypatch)
    with (
        context_of(small_recipe(tmp_path)) as context,
        raises(TrainingError, "training.images_ignored"),
    ):
        {"sft": train_sft, "grpo": train_grpo}[stage](
            replace(context, recipe=context.recipe.model_copy(update={"sft": None})) if stage == "grpo" else context
        )


@pytest.mark.slow
def test_pixels_lost_only_in_grpo_are_detected_in_its_first_batch(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in unsloth#11031, the model reads its images, but GRPO computes log-probabilities without pixels."""
    from toolkit.training.grpo_trainer import PolicyTrainer

    compute = PolicyTrainer._get_per_token_logps_and_entropies

    def lose(self: PolicyTrainer, *args: Any, **fields: Any) -> Any:
        return compute(self, *args, **{**fields, "pixel_values": torch.zeros_like(fields["pixel_values"])})

    monkeypatch.setattr(PolicyTrainer, "_get_per_token_logps_and_entropies", lose)
    alone = replace(context, recipe=context.recipe.model_copy(update={"sft": None}))
    with raises(TrainingError, "training.images_ignored") as caught:
        train_grpo(alone)
    assert caught.problem.place == "grpo, the first batch"


@pytest.mark.slow
def test_truncated_and_masked_completions_are_checked_too(tmp_path: Path) -> None:
    cut = {"max_completion_tokens": 2, "mask_truncated": True, "max_steps": 1}
    recipe = small_recipe(tmp_path, {"grpo": cut, "rewards": length_reward(tmp_path)})
    with context_of(recipe.model_copy(update={"sft": None})) as context:
        assert train_grpo(context).training.steps == 1


@pytest.mark.slow
def test_pixels_are_checked_at_temperature_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At temperature 0.01 the log-probabilities of sampled tokens round to 0, whatever the pixels are."""
    from toolkit.training.grpo_trainer import PolicyTrainer

    compute, seen = PolicyTrainer._get_per_token_logps_and_entropies, list[float]()

    def note(self: PolicyTrainer, *args: Any, **fields: Any) -> Any:
        seen.append(self.temperature)
        return compute(self, *args, **fields)

    monkeypatch.setattr(PolicyTrainer, "_get_per_token_logps_and_entropies", note)
    # With beta, completions of equal rewards are part of the update too.
    cold = {"max_completion_tokens": 2, "temperature": 0.01, "max_steps": 1, "beta": 0.01}
    recipe = small_recipe(tmp_path, {"grpo": cold, "rewards": length_reward(tmp_path)})
    with context_of(recipe.model_copy(update={"sft": None})) as context:
        train_grpo(context)
    assert seen.count(1.0) == 3
    assert seen[-1] == 0.01


def test_numerical_noise_alone_does_not_pass_the_check() -> None:
    """Sums on a GPU may differ in their last bits from call to call."""
    noise = iter([1.0, 1.0 + 2e-7, 1.0 + 1e-7] * 2)
    rows = [Row([], []), Row([], [])]
    with raises(TrainingError, "training.images_ignored"):
        check_images_change_loss(lambda row: next(noise), rows)


def test_a_change_in_one_of_two_rows_is_enough() -> None:
    losses = iter([0.0, 0.0, 0.0, 1.0, 1.0, 1.5])  # the first answer is certain with either image
    assert check_images_change_loss(lambda row: next(losses), [Row([], []), Row([], [])])


def test_rows_with_the_same_images_cannot_be_swapped(context: Context, policy: Policy) -> None:
    class NoLoss(HfBackend):
        def answer_loss(self, policy: Policy, row: Row) -> float:
            raise AssertionError("no loss must be computed")

    same = [context.data.train[0]] * 3
    assert not check_images_used(NoLoss(), policy, Prompts.of(context.recipe, context.images), same)
