"""The hf backend on a CUDA device: precisions, SFT, GRPO, adapters found again, merging, full fine-tuning."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.exports import adapter_of, merged_of, verified
from tests.helpers.problems import warnings_in
from tests.helpers.training import context_of, small_recipe
from toolkit.evaluation.stage_context import Context
from toolkit.exporting.export import export
from toolkit.models.backend import Policy, Sampling, TrainingJob
from toolkit.models.hf import HfBackend
from toolkit.models.loading import precision_of
from toolkit.models.prompts import Prompts
from toolkit.recipe import Export, Model
from toolkit.training.grpo import build_grpo, make_reward_scorer, train_grpo
from toolkit.training.rewards import recipe_rewards
from toolkit.training.sft import train_sft

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

BITS = {"4bit": 4, "8bit": 8, "16bit": 16, "32bit": 32}


@contextmanager
def context_with(folder: Path, model: Mapping[str, Any], **tables: Mapping[str, Any]) -> Iterator[Context]:
    """Yield a context with two steps of SFT and GRPO as in recipes for real models: checkpointed, paged 8-bit AdamW."""
    training = {"max_steps": 2, "gradient_checkpointing": True, "optimizer": "paged_adamw_8bit"}
    reward = folder / "reward.py"  # which differs within a group
    reward.write_text("def length(sample, answer):\n    return min(len(answer.text), 200) / 200\n", encoding="utf-8")
    changed = {"model": model, "sft": training, "grpo": training, "rewards": {"custom": (f"{reward}:length",)}}
    with context_of(small_recipe(folder, {**changed, **tables})) as context:
        yield context


def answers_of(backend: HfBackend, policy: Policy, context: Context) -> list[str]:
    prompts = Prompts.of(context.recipe, context.images)
    rows = [prompts.row(sample) for sample in context.data.test[:6]]
    return [group[0].text for group in backend.generate(policy, rows, Sampling(12))]


def test_auto_is_four_bits_for_lora_and_thirty_two_for_full_fine_tuning(tmp_path: Path) -> None:
    assert precision_of(Model()) == "4bit"
    assert precision_of(Model(tuning="full")) == "32bit"
    assert precision_of(Model(), mergeable=True) == "own"
    policy = HfBackend().load(small_recipe(tmp_path), None, trainable=False)
    assert policy.bits == 4
    assert policy.model.device.type == "cuda"


@pytest.mark.parametrize("precision", list(BITS))
def test_a_precision_trains_and_its_adapter_gives_the_same_answers(tmp_path: Path, precision: str) -> None:
    with context_with(tmp_path, {"precision": precision}) as context:
        record = train_sft(context)
        context.run.mark_done("sft", record)
        context.run.mark_done("grpo", train_grpo(context))
        losses = [line["loss"] for line in context.run.metrics() if "loss" in line]
        assert len(losses) == 4
        assert all(loss == loss for loss in losses)
        backend = HfBackend()
        policy = backend.load(context.recipe, context.weights, trainable=False)
        expected = (
            (16 if torch.cuda.is_bf16_supported(including_emulation=False) else 32) if precision == "16bit" else 0
        )
        assert policy.bits == (expected or BITS[precision])
        backend.save(policy, tmp_path / "again")
        again = backend.load(context.recipe, tmp_path / "again", trainable=False)
        assert answers_of(backend, policy, context) == answers_of(backend, again, context)


def test_the_adapter_of_a_quantized_model_keeps_its_precision(tmp_path: Path) -> None:
    """bfloat16 would round GRPO's small steps away."""
    with context_with(tmp_path, {"precision": "4bit"}) as context:
        backend, prompts = HfBackend(), Prompts.of(context.recipe, context.images)
        policy = backend.load(context.recipe, None, trainable=True)
        scorer = make_reward_scorer(prompts.task, recipe_rewards(context.recipe), context.data.train, 4)
        rows = prompts.rows(context.data.train)
        build_grpo(backend, policy, TrainingJob(context.recipe, rows, 4, tmp_path, scorer=scorer)).train()
        trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
        assert {parameter.dtype for parameter in trained} == {torch.float32}
        assert {parameter.device.type for parameter in trained} == {"cuda"}


def test_an_adapter_on_four_bits_is_merged_into_the_base_as_it_is_stored(tmp_path: Path) -> None:
    with context_with(tmp_path, {"precision": "4bit"}) as context:
        context.run.mark_done("sft", train_sft(context))
        chosen = replace(context, recipe=context.recipe.model_copy(update={"export": Export(verify=12)}))
        result = export(chosen)
        assert (adapter_of(result).bits, merged_of(result).bits) == (4, 16)
        assert verified(adapter_of(result)).differing == 0
        saved = load_file(context.run.path / "stages/export/merged/model.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


def test_full_fine_tuning_in_sixteen_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with context_with(tmp_path, {"precision": "16bit", "tuning": "full"}) as context:
        with caplog.at_level(logging.WARNING):
            context.run.mark_done("sft", train_sft(context))
        if torch.cuda.is_bf16_supported(including_emulation=False):
            assert "training.full_tuning_in_16bit" in [problem.code for problem in warnings_in(caplog)]
        backend = HfBackend()
        policy = backend.load(context.recipe, context.weights, trainable=False)
        backend.save(policy, tmp_path / "again")
        again = backend.load(context.recipe, tmp_path / "again", trainable=False)
        assert answers_of(backend, policy, context) == answers_of(backend, again, context)
