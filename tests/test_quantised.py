"""Four bits through bitsandbytes' kernels for the CPU: the adapter trains, keeps its precision, and is found again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training import context_of, small_recipe
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from toolkit import tiny
from toolkit.backends import adapter
from toolkit.backends.base import Policy, Sampling, TrainingJob
from toolkit.backends.hf import HfBackend, load_processor, make_policy
from toolkit.errors import ModelError
from toolkit.stages.context import Context
from toolkit.stages.grpo import make_judge, rewards_of
from toolkit.stages.prompts import Prompts

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed here")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    tables = {"lora": {"vision": True}, "grpo": {"learning_rate": 5e-6}}
    with context_of(small_recipe(tmp_path_factory.mktemp("quantised"), tables)) as made:
        yield made


def four_bits() -> Any:
    """The tiny model as ``precision = "4bit"`` loads it, on the CPU, where the recipe itself refuses it."""
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForImageTextToText.from_pretrained(
        tiny.FOLDER, dtype=torch.float32, quantization_config=quantisation, device_map={"": "cpu"}
    )


def policy_of(context: Context, weights: Path | None = None) -> Policy:
    if weights is None:
        model = adapter.attach(four_bits(), context.recipe.lora, context.recipe.run.seed)
    else:
        model = adapter.reload(four_bits(), weights, trainable=False)
    model.train(weights is None)
    return make_policy(model, load_processor(context.recipe.model), weights)


def test_an_adapter_on_four_bits_trains_and_is_found_again(context: Context, tmp_path: Path) -> None:
    backend, policy = HfBackend(), policy_of(context)
    prompts = Prompts.of(context.recipe, context.images)
    assert policy.bits == 4
    layer = policy.model.base_model.model.model.language_model.layers[0].mlp.up_proj
    assert isinstance(layer.base_layer, bitsandbytes.nn.Linear4bit)
    rows = prompts.rows(context.data.train, answer=True)
    backend.sft_trainer(policy, TrainingJob(context.recipe, rows, len(context.data.train), tmp_path)).train()
    backend.save(policy, tmp_path / "weights")
    asked = [prompts.row(sample) for sample in context.data.test[:4]]
    again = policy_of(context, tmp_path / "weights")
    assert backend.generate(policy, asked, Sampling(12)) == backend.generate(again, asked, Sampling(12))


def test_the_adapter_of_a_quantised_model_keeps_its_precision(context: Context, tmp_path: Path) -> None:
    """In bfloat16 the neighbours of a weight of 0.01 are 6e-5 away: GRPO's steps of 5e-6 would be rounded away."""
    backend, policy = HfBackend(), policy_of(context)
    prompts = Prompts.of(context.recipe, context.images)
    before = {name: value.clone() for name, value in trained(policy)}
    judge = make_judge(prompts.task, rewards_of(context.recipe), context.data.train, 4)
    job = TrainingJob(context.recipe, prompts.rows(context.data.train), 4, tmp_path, judge=judge)
    backend.grpo_trainer(policy, job)
    assert {value.dtype for _, value in trained(policy)} == {torch.float32}
    assert all(torch.equal(value, before[name]) for name, value in trained(policy))


def trained(policy: Policy) -> list[tuple[str, torch.Tensor]]:
    return [(name, value.data) for name, value in policy.model.named_parameters() if value.requires_grad]


def test_a_quantised_base_is_not_merged_into(context: Context, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not quantised.*4 bits"):
        HfBackend().save_merged(policy_of(context), tmp_path / "merged")
