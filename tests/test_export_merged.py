"""Merging of adapters from elsewhere: with fully trained layers, and on a base that is stored in four bits."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from tests.helpers.exports import merged_of, verified
from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import make_recipe
from tests.helpers.training import context_of, small_recipe
from toolkit import tiny
from toolkit.errors import ModelError
from toolkit.evaluation.stage_context import Context
from toolkit.exporting.export import export
from toolkit.models.hf import HfBackend


def with_export(context: Context, **section: object) -> Context:
    return replace(context, recipe=make_recipe({**context.recipe.model_dump(), "export": section}))


def foreign_adapter(folder: Path) -> Path:
    """Save an adapter with LoRA on one layer and a fully trained projector, both changed from the base."""
    base = AutoModelForImageTextToText.from_pretrained(tiny.FOLDER, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["down_proj"], modules_to_save=["multi_modal_projector"])
    model = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, value in (one for one in model.named_parameters() if one[1].requires_grad):
            value.add_(0.02 * torch.randn(value.shape, generator=generator))
    model.save_pretrained(str(folder))
    return folder


def test_fully_trained_layers_of_a_foreign_adapter_are_merged(tmp_path: Path) -> None:
    adapter = foreign_adapter(tmp_path / "adapter")
    recipe = small_recipe(tmp_path, {"model": {"adapter": adapter}, "export": {"to": ("merged",), "verify": 3}})
    with context_of(recipe) as context:
        verification = verified(merged_of(export(context)))
        merged = load_file(context.run.path / "stages/export/merged/model.safetensors")
    assert verification.differing == 0
    assert verification.gap < 0.01
    name = "multi_modal_projector.mm_input_projection_weight"
    (ours,) = (value for key, value in merged.items() if key.endswith(name))
    (trained,) = (
        value for key, value in load_file(adapter / "adapter_model.safetensors").items() if key.endswith(name)
    )
    (base,) = (value for key, value in load_file(tiny.FOLDER / "model.safetensors").items() if key.endswith(name))
    assert torch.equal(ours, trained)
    assert not torch.allclose(ours, base.float(), atol=1e-3)


def test_merged_weights_include_the_sentencepiece_model(tmp_path: Path) -> None:
    """transformers 5 omits it, and llama.cpp's converter then reads the tokenizer as another type."""
    recipe = small_recipe(tmp_path)
    HfBackend().save_merged(HfBackend().load(recipe, None, trainable=False), tmp_path / "merged")
    name = "tokenizer.model"
    assert (tmp_path / "merged" / name).read_bytes() == (tiny.FOLDER / name).read_bytes()


def four_bit_base(folder: Path) -> Path:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForImageTextToText.from_pretrained(
        tiny.FOLDER, dtype=torch.float32, quantization_config=quantization, device_map={"": "cpu"}
    )
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(tiny.FOLDER).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_base_that_is_stored_in_four_bits_is_dequantized_only_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed here")
    base, adapter = four_bit_base(tmp_path / "base"), foreign_adapter(tmp_path / "adapter")
    recipe = small_recipe(tmp_path, {"model": {"name": str(base), "adapter": adapter}})
    with context_of(recipe) as context:
        with raises(ModelError, "export.base_quantized") as caught:
            export(with_export(context, to=["merged"], verify=1))
        assert caught.problem.value == "4 bits"
        assert "allow_dequantized" in caught.problem.remedy
        with caplog.at_level(logging.WARNING):
            exported = merged_of(export(with_export(context, to=["merged"], verify=12, allow_dequantized=True)))
        merged = load_file(context.run.path / "stages/export/merged/model.safetensors")
    assert (exported.dequantized, exported.bits) == (True, 16)
    assert "export.merged_into_dequantized" in [problem.code for problem in warnings_in(caplog)]
    assert {value.dtype for value in merged.values()} == {torch.bfloat16}
    # Merged weights are near those of the base, but not equal, because the quantization error remains.
    original = load_file(tiny.FOLDER / "model.safetensors")
    name = next(name for name in original if "language_model" in name and "layers.0.self_attn.q_proj" in name)
    assert 0 < (merged[name].float() - original[name].float()).abs().mean() < original[name].float().abs().mean() / 4
