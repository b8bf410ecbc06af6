"""Merged weights: written shard by shard, and every matrix compared with base + scale * B A."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests.helpers.problems import raises
from tests.helpers.recipes_on_shapes import SHAPE_OF
from tests.helpers.shapes import write_model
from toolkit import tiny
from toolkit.errors import ModelError
from toolkit.models import lora as adapter
from toolkit.models.merge import compare_merged, plan_merge, write_merged
from toolkit.recipe import Lora


def adapted(base: Path, dtype: Any = torch.float32, **settings: Any) -> PeftModel:
    """Return the base with a LoRA adapter on language model and vision tower, with weights other than 0."""
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
    layers = adapter.layers(model, Lora(vision=True))
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": layers, **settings}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return model


def in_two_shards(base: Path, folder: Path) -> Path:
    """The tiny model's files with its weights in two shards and an index."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for file, chosen in parts.items():
        save_file({name: weights[name] for name in chosen}, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(value.nbytes for value in weights.values())},
        "weight_map": {name: file for file, chosen in parts.items() for name in chosen},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 32}},
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True},
    ],
)
def test_merged_files_equal_what_peft_merges(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = adapted(tiny.FOLDER, **settings)
    merge = plan_merge(model)
    assert merge is not None
    write_merged(merge, tmp_path / "merged")
    compared = compare_merged(merge, tmp_path / "merged")
    assert compared.matrices == sum("lora_A" in name for name, _ in model.named_parameters())
    assert compared.largest_change > 0.01
    shutil.copy(tiny.FOLDER / "config.json", tmp_path / "merged")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32).state_dict()
    whole = model.merge_and_unload().state_dict()
    assert again.keys() == whole.keys()
    assert all(torch.allclose(again[name], whole[name], atol=1e-6) for name in whole)


def test_the_vision_towers_update_is_merged_under_the_files_names(tmp_path: Path) -> None:
    """A module is named vision_tower.encoder, and its stored tensors vision_tower.vision_model.encoder."""
    merge = plan_merge(adapted(tiny.FOLDER))
    assert merge is not None
    towers = [name for name in merge.factors if "vision_tower.vision_model.encoder" in name]
    assert len(towers) == sum("vision" in name for name in merge.factors) > 0
    write_merged(merge, tmp_path)
    before, after = load_file(tiny.FOLDER / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(not torch.equal(before[name].float(), after[name].float()) for name in towers)


def test_shards_names_dtypes_and_the_index_are_the_bases(tmp_path: Path) -> None:
    base = in_two_shards(tiny.FOLDER, tmp_path / "base")
    stored = next(iter(load_file(tiny.FOLDER / "model.safetensors").values())).dtype
    merge = plan_merge(adapted(base, dtype=stored))
    assert merge is not None
    write_merged(merge, tmp_path / "merged")
    assert compare_merged(merge, tmp_path / "merged").matrices == len(merge.factors)
    index = "model.safetensors.index.json"
    assert json.loads((tmp_path / "merged" / index).read_text()) == json.loads((base / index).read_text())
    assert {file.name for file in (tmp_path / "merged").iterdir()} == {*merge.files, index}
    for file in merge.files:
        with safe_open(tmp_path / "merged" / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        before, after = load_file(base / file), load_file(tmp_path / "merged" / file)
        assert {name: value.dtype for name, value in after.items()} == {n: v.dtype for n, v in before.items()}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda merged, base: base, "unchanged"),
        (lambda merged, base: merged + 0.05 * (merged - base), "off by up to"),
        (lambda merged, base: merged * torch.nan, "off by up to nan"),
        (lambda merged, base: None, "missing"),
    ],
)
def test_a_wrongly_merged_matrix_is_named(tmp_path: Path, damage: Any, problem: str) -> None:
    merge = plan_merge(adapted(tiny.FOLDER))
    assert merge is not None
    write_merged(merge, tmp_path)
    file = tmp_path / "model.safetensors"
    weights, base = load_file(file), load_file(tiny.FOLDER / "model.safetensors")
    name = next(name for name in sorted(merge.factors) if "vision" in name)
    worse = damage(weights.pop(name), base[name].float())
    save_file(weights if worse is None else {**weights, name: worse}, file)
    with raises(ModelError, "export.merged_matrices_wrong") as caught:
        compare_merged(merge, tmp_path)
    assert "1 wrong" in str(caught.problem.value)
    assert f"{name} ({problem}" in str(caught.problem.value)


def test_the_scale_of_rslora_is_alpha_by_the_root_of_the_rank() -> None:
    plain, stabilised = (plan_merge(adapted(tiny.FOLDER, use_rslora=rslora)) for rslora in (False, True))
    assert plain is not None
    assert stabilised is not None
    assert {factors.scale for factors in plain.factors.values()} == {8 / 4}
    assert {factors.scale for factors in stabilised.factors.values()} == {8 / 2}


def test_a_merged_dora_matrix_has_rows_of_the_trained_lengths(tmp_path: Path) -> None:
    merge = plan_merge(adapted(tiny.FOLDER, use_dora=True))
    assert merge is not None
    write_merged(merge, tmp_path)
    after = load_file(tmp_path / "model.safetensors")
    for name, factors in merge.factors.items():
        assert factors.lengths is not None
        rows = torch.linalg.norm(after[name].float(), dim=1)
        assert torch.allclose(rows, factors.lengths.abs(), rtol=1e-5)


def test_a_tensor_outside_the_adapter_equals_the_base(tmp_path: Path) -> None:
    merge = plan_merge(adapted(tiny.FOLDER))
    assert merge is not None
    write_merged(merge, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in sorted(weights) if name not in merge.factors)
    save_file({**weights, name: weights[name] + 1}, tmp_path / "model.safetensors")
    with raises(ModelError, "export.merged_matrices_wrong") as caught:
        compare_merged(merge, tmp_path)
    assert "no part of the adapter" in str(caught.problem.value)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"bias": "lora_only"}, {"init_lora_weights": "olora"}])
def test_peft_merges_an_adapter_beyond_lora_and_dora(settings: dict[str, Any]) -> None:
    """Such an adapter changes the base's biases or weights in memory, but not in the base's files."""
    assert plan_merge(adapted(tiny.FOLDER, **settings)) is None


@pytest.mark.slow
@pytest.mark.parametrize("shape", sorted(set(SHAPE_OF.values())))
def test_every_shipped_architecture_finds_its_matrices_in_its_files(
    tmp_path: Path, shared_data: Path, shape: str
) -> None:
    write_model(shape, tmp_path / shape, shared_data, small=True)
    model = adapted(tmp_path / shape, dtype=torch.bfloat16)
    merge = plan_merge(model)
    assert merge is not None
    write_merged(merge, tmp_path / "merged")
    compared = compare_merged(merge, tmp_path / "merged")
    assert compared.matrices == sum("lora_A" in name for name, _ in model.named_parameters())
