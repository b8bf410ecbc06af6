"""QLoRA through bitsandbytes' kernels for the CPU: 4 and 8 bits train, evaluate, resume, save and merge.

bitsandbytes takes another path on CPUs with AVX512-BF16. Whether a CPU has it is what ``has_avx512bf16`` answers; tests
replace that answer, so that both paths are taken on any machine.
"""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.helpers.exports import adapter_of, export_of, merged_of, verified
from tests.helpers.problems import raises, warnings_in
from tests.helpers.training import Tables, context_of, length_reward, small_recipe
from toolkit.errors import Interrupted, ModelError
from toolkit.evaluation.stage_context import Context
from toolkit.models.backend import Policy, Sampling, TrainingJob
from toolkit.models.hf import HfBackend
from toolkit.models.loading import precision_of
from toolkit.models.prompts import Prompts
from toolkit.pipeline import run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Model, Recipe
from toolkit.runfolder import StopRequest
from toolkit.training import train as training
from toolkit.training.grpo import build_grpo, make_reward_scorer
from toolkit.training.results import GrpoResult, SftResult
from toolkit.training.rewards import recipe_rewards
from toolkit.training.sft import train_sft

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed here")

ADAPTER = "adapter_model.safetensors"


def pretend_avx512bf16(patch: pytest.MonkeyPatch, answer: bool) -> None:
    patch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: answer)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    tables: Tables = {"lora": {"vision": True}, "model": {"precision": "4bit"}, "grpo": {"learning_rate": 5e-6}}
    with context_of(small_recipe(tmp_path_factory.mktemp("quantized"), tables)) as made:
        yield made


def policy_of(context: Context, weights: Path | None = None) -> Policy:
    return HfBackend().load(context.recipe, weights, trainable=weights is None)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["4bit", "8bit"])
def test_a_quantized_run_completes_every_stage_on_a_cpu(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_avx512bf16(monkeypatch, True)
    steps = {"max_steps": 1, "optimizer": "paged_adamw_8bit", "gradient_checkpointing": True}
    tables: Tables = {
        "model": {"precision": precision},
        "data": {"synthetic": {"kind": "chest", "train": 8, "test": 2, "size": 64}},
        "rewards": length_reward(tmp_path),
        "sft": {**steps, "accumulation": 1},
        "grpo": {**steps, "max_completion_tokens": 8},
        "evaluate": {"max_completion_tokens": 8},
        "export": {"to": ("adapter", "merged"), "verify": 2},
    }
    with caplog.at_level(logging.WARNING, logger="toolkit"):
        run = run_recipe(small_recipe(tmp_path, tables), STAGES).run
    warned = {problem.code: problem for problem in warnings_in(caplog)}
    assert warned["model.quantized_on_cpu"].value == precision
    assert warned["training.optimizer_not_paged"].value == "paged_adamw_8bit"
    losses = [line["loss"] for line in run.metrics() if "loss" in line]
    assert len(losses) == 2
    assert all(torch.isfinite(torch.tensor(losses)))
    assert run.result("sft", SftResult).optimizer == run.result("grpo", GrpoResult).optimizer == "adamw_8bit"
    exported = export_of(run)
    assert (adapter_of(exported).bits, verified(adapter_of(exported)).differing) == (int(precision[0]), 0)
    assert merged_of(exported).bits == 16
    assert verified(merged_of(exported)).samples == 2


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["4bit", "8bit"])
def test_training_resumes_bit_for_bit_with_and_without_avx512bf16(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer repacked for AVX512-BF16 has no backward pass, and rounded scales, so weights would differ."""
    tables: Tables = {
        "model": {"precision": precision},
        "sft": {"max_steps": 2, "accumulation": 1, "optimizer": "adamw_8bit"},
    }

    def recipe_of(name: str) -> Recipe:
        return small_recipe(tmp_path, tables, name=name).model_copy(update={"grpo": None, "evaluate": None})

    whole, halved = recipe_of("whole"), recipe_of("halved")
    pretend_avx512bf16(monkeypatch, False)
    with context_of(whole) as context:
        train_sft(context)
    pretend_avx512bf16(monkeypatch, True)
    with context_of(halved) as context, monkeypatch.context() as patch:
        stop_after_the_first_step(patch, context.stop)
        with pytest.raises(Interrupted):
            train_sft(context)
    with context_of(halved) as context:
        assert train_sft(context).training.resumed_from == "step-00000001"
    first, second = (load_file(recipe.run_folder / "stages/sft/weights" / ADAPTER) for recipe in (whole, halved))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def stop_after_the_first_step(patch: pytest.MonkeyPatch, stop: StopRequest) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            stop.join(signal.SIGINT)

    plain = training.training_callbacks
    patch.setattr(training, "training_callbacks", lambda *given: [Stop(), *plain(*given)])


@pytest.mark.parametrize("avx512bf16", [False, True])
def test_a_saved_4bit_adapter_has_the_same_completions(
    context: Context, tmp_path: Path, avx512bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_avx512bf16(monkeypatch, avx512bf16)
    backend, policy = HfBackend(), policy_of(context)
    prompts = Prompts.of(context.recipe, context.images)
    assert policy.bits == 4
    layer = policy.model.base_model.model.model.language_model.layers[0].mlp.up_proj
    assert isinstance(layer.base_layer, bitsandbytes.nn.Linear4bit)
    rows = [prompts.row(sample) for sample in context.data.test[:2]]
    before = backend.generate(policy, rows, Sampling(8))
    backend.save(policy, tmp_path / "weights")
    assert backend.generate(policy_of(context, tmp_path / "weights"), rows, Sampling(8)) == before


def test_a_layer_repacked_for_avx512bf16_loses_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for ``_keep_trainable``. If this test fails, bitsandbytes has changed and it can be removed."""
    pretend_avx512bf16(monkeypatch, True)
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    layer.eval()(torch.randn(2, 64))
    assert layer.weight.quant_state.packing_format_for_cpu


def test_the_adapter_of_a_quantized_model_keeps_its_precision(context: Context, tmp_path: Path) -> None:
    """Near 0.01, bfloat16 values are 6e-5 apart, so GRPO's updates of 5e-6 would be rounded away."""
    backend, policy = HfBackend(), policy_of(context)
    prompts = Prompts.of(context.recipe, context.images)
    before = {name: value.clone() for name, value in trained(policy)}
    scorer = make_reward_scorer(prompts.task, recipe_rewards(context.recipe), context.data.train, 4)
    job = TrainingJob(context.recipe, prompts.rows(context.data.train), 4, tmp_path, scorer=scorer)
    build_grpo(backend, policy, job)
    assert {value.dtype for _, value in trained(policy)} == {torch.float32}
    assert all(torch.equal(value, before[name]) for name, value in trained(policy))


def trained(policy: Policy) -> list[tuple[str, torch.Tensor]]:
    return [(name, value.data) for name, value in policy.model.named_parameters() if value.requires_grad]


def test_merging_into_a_quantized_base_is_rejected(context: Context, tmp_path: Path) -> None:
    with raises(ModelError, "export.base_quantized") as caught:
        HfBackend().save_merged(policy_of(context), tmp_path / "merged")
    assert caught.problem.value == "4 bits"


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is 4bit on a GPU")
def test_auto_is_32bit_on_a_cpu() -> None:
    assert precision_of(Model()) == "32bit"
