"""A GPU that is too small, made so by a cap on this process: OOM recovery with real errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.problems import raises
from tests.helpers.training import adapter_of, context_of, only, small_recipe
from toolkit.errors import TrainingError
from toolkit.models.backend import Sampling
from toolkit.models.hf import HfBackend
from toolkit.models.oom import free
from toolkit.models.prompts import Prompts
from toolkit.recipe import Recipe
from toolkit.training.grpo import train_grpo
from toolkit.training.results import GrpoResult, SftResult
from toolkit.training.sft import train_sft

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


@contextmanager
def capped(size: float) -> Iterator[None]:
    """Limit the GPU memory that torch may use to ``size`` bytes."""
    free()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(size / total, 1.0))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        free()


def wide(folder: Path, name: str, batch: int = 64) -> Recipe:
    tables: dict[str, dict[str, Any]] = {
        "model": {"precision": "32bit"},
        "lora": {"dropout": 0.0},
        "data": {"synthetic": {"kind": "chest", "train": 128, "test": 16, "size": 128}},
        "sft": {"max_steps": 2, "batch_size": batch, "accumulation": 1},
    }
    return only("sft", folder, name, tables)


def trained(recipe: Recipe, **options: Any) -> tuple[SftResult, list[dict[str, Any]]]:
    with context_of(recipe) as context:
        return train_sft(context, **options), [line for line in context.run.metrics() if "loss" in line]


def allocated(result: SftResult | GrpoResult) -> int:
    return result.training.gpu_memory.peak_allocated_bytes or 0


def reserved(result: SftResult | GrpoResult) -> int:
    return result.training.gpu_memory.peak_reserved_bytes or 0


def test_sft_under_a_cap_makes_the_same_update(tmp_path: Path) -> None:
    record, wanted = trained(wide(tmp_path, "whole"))
    small, _ = trained(wide(tmp_path, "narrow", 16))
    preflight = record.training.gpu_memory.preflight
    assert record.training.gpu_memory.out_of_memory == 0
    assert preflight is not None
    assert 0 < (preflight.peak_allocated_bytes or 0) <= (preflight.peak_reserved_bytes or 0)
    # More than 16 rows per pass fit, and less than 64: the preflight step has to be made again.
    cap = (reserved(small) + allocated(record)) / 2
    with capped(cap):
        capped_record, found = trained(wide(tmp_path, "capped"))
    memory = capped_record.training.gpu_memory
    assert memory.recoveries[0].during == "preflight step"
    assert memory.micro_batch < 64
    assert memory.micro_batch * memory.accumulation == 64
    for one, other in zip(found, wanted, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)
    one, other = (adapter_of(wide(tmp_path, name), "sft") for name in ("capped", "whole"))
    apart = sum(float((one[name] - other[name]).square().sum()) for name in one if "lora_B" in name)
    assert apart < 1e-2 * sum(float(other[name].square().sum()) for name in one if "lora_B" in name)


def test_recovery_in_a_step_frees_the_gpu_and_ends_near_an_undisturbed_run(tmp_path: Path) -> None:
    """Without a preflight step, so that the error comes within the training."""
    record, wanted = trained(wide(tmp_path, "whole"), preflight=False)
    small, _ = trained(wide(tmp_path, "narrow", 16), preflight=False)
    cap = (reserved(small) + allocated(record)) / 2
    with capped(cap):
        capped_record, found = trained(wide(tmp_path, "capped"), preflight=False)
    assert capped_record.training.gpu_memory.recoveries[0].during == "pass"
    assert [line["step"] for line in found] == [1, 2]
    for one, other in zip(found, wanted, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_a_cap_below_one_row_stops_with_advice(tmp_path: Path) -> None:
    recipe = wide(tmp_path, "none")
    with context_of(recipe) as context:
        policy = HfBackend().load(recipe, None, trainable=True)
        held = torch.cuda.memory_reserved()
        del policy
        with capped(held + 2**21), raises(TrainingError, "training.out_of_memory"):
            train_sft(context)


def test_a_rollout_under_a_cap_is_generated_in_parts(tmp_path: Path) -> None:
    def recipe(name: str, prompts: int) -> Recipe:
        grpo = {"max_steps": 1, "prompts_per_step": prompts, "generations": 16, "micro_batch": 1}
        tables: dict[str, dict[str, Any]] = {
            "model": {"precision": "32bit"},
            "grpo": grpo | {"max_completion_tokens": 64},
        }
        return only("grpo", tmp_path, name, tables)

    peaks = []
    for prompts in (1, 8):
        with context_of(recipe(f"whole-{prompts}", prompts)) as context:
            peaks.append(reserved(train_grpo(context, preflight=False)))
    with capped((peaks[0] + peaks[1]) / 2), context_of(recipe("capped", 8)) as context:
        memory = train_grpo(context, preflight=False).training.gpu_memory
    assert memory.completions_per_generate is not None
    assert memory.completions_per_generate < 128
    assert {one.during for one in memory.recoveries} == {"rollout"}


def test_answers_under_a_cap_are_the_same(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"model": {"precision": "32bit"}})
    with context_of(recipe) as context:
        prompts = Prompts.of(recipe, context.images)
        rows = [prompts.row(sample) for sample in context.data.test] * 8
        policy = HfBackend().load(recipe, None, trainable=False)
        free()
        held = torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        wanted = HfBackend().generate(policy, rows, Sampling(12))
        needed = torch.cuda.max_memory_allocated() - held
        with capped(held + 0.6 * needed):
            assert HfBackend().generate(policy, rows, Sampling(12)) == wanted
        assert policy.batch_limit.errors >= 1
