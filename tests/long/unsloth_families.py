"""Unsloth on a CPU beyond the gate: other model families, longer rows, and the shipped recipes. See tests/long/run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3_5Config

from tests.helpers.model_families import TEXT, TOKENS, VISION
from tests.helpers.real_processors import unpack_processors
from tests.helpers.recipes import load_recipe
from tests.helpers.recipes_on_shapes import CASES, RECIPES, on_synthetic_data_to_export
from tests.helpers.shapes import write_model
from tests.helpers.training import Tables
from tests.helpers.unsloth_runs import check_run, recipe_of
from tests.unsloth_cpu.process import run_toolkit
from toolkit.runfolder import RunFolder
from toolkit.training.results import GrpoResult


def qwen3_5(folder: Path, data: Path) -> Path:
    """Qwen3.5 with one linear-attention and one full-attention layer, with Qwen3-VL's processor."""
    unpack_processors(data, folder)
    text = {
        **TEXT,
        "hidden_size": 64,
        "head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "partial_rotary_factor": 0.5,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
    }
    vision = {**VISION, "out_hidden_size": 64}
    config = Qwen3_5Config.from_dict({"model_type": "qwen3_5", **TOKENS, "text_config": text, "vision_config": vision})
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "model")
    AutoProcessor.from_pretrained(folder / "processors" / "qwen3_vl").save_pretrained(folder / "model")
    return folder / "model"


def small_images(model: Path, **more: Any) -> dict[str, dict[str, Any]]:
    return {
        "model": {"name": str(model), "max_tokens": 400, **more},
        "images": {"max_side": 56},
    }


def test_qwen3_vl_runs_to_a_verified_merge(tmp_path: Path, shared_data: Path) -> None:
    write_model("qwen3_vl_8b", tmp_path / "qwen3_vl_8b", shared_data, small=True)
    recipe = recipe_of(tmp_path, "unsloth", small_images(tmp_path / "qwen3_vl_8b"))
    check_run(recipe, run_toolkit(recipe, "L4"))


def test_qwen3_5_runs_to_a_verified_merge(tmp_path: Path, shared_data: Path) -> None:
    recipe = recipe_of(tmp_path, "unsloth", small_images(qwen3_5(tmp_path, shared_data)))
    check_run(recipe, run_toolkit(recipe, "L4"))


def test_max_tokens_above_512_runs_with_unsloths_checkpointing(tmp_path: Path) -> None:
    """From 512 tokens on, Unsloth uses its offloaded checkpointing, below it torch's."""
    checkpointed = {"gradient_checkpointing": True}
    tables: Tables = {"model": {"max_tokens": 600}, "sft": checkpointed, "grpo": checkpointed}
    recipe = recipe_of(tmp_path, "unsloth", tables)
    check_run(recipe, run_toolkit(recipe, "L4"))


def test_medgemma_grpo_finishes_after_an_out_of_memory_error_in_its_rollout(tmp_path: Path, shared_data: Path) -> None:
    model = tmp_path / "medgemma_4b"
    write_model("medgemma_4b", model, shared_data, small=True)
    recipe = on_synthetic_data_to_export(load_recipe(RECIPES / "medgemma_grpo.toml"), model, tmp_path)
    done = run_toolkit(recipe, "L4", oom="rollout:2")
    assert done.status == 0, done.output[-6000:]
    assert RunFolder(recipe.run_folder).result("grpo", GrpoResult).training.gpu_memory.out_of_memory == 1


@pytest.mark.parametrize("gpu", ["L4", "T4"])
@pytest.mark.parametrize(("file", "shape"), CASES, ids=[f"{file.stem}-{shape}" for file, shape in CASES])
def test_a_shipped_recipe_runs_to_verified_exports(
    tmp_path: Path, shared_data: Path, file: Path, shape: str, gpu: str
) -> None:
    model = tmp_path / shape
    write_model(shape, model, shared_data, small=True)
    recipe = on_synthetic_data_to_export(load_recipe(file), model, tmp_path)
    done = run_toolkit(recipe, gpu)
    assert done.status == 0, done.output[-6000:]
    exported = RunFolder(recipe.run_folder).record("export")
    assert exported["merged"]["compared"]["matrices"] > 0
    assert exported["merged"]["questions"] > 0
    assert json.loads((RunFolder(recipe.run_folder).path / "stages/export/merged/config.json").read_text())
