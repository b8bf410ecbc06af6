"""Small models of the Qwen families with random weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, AutoProcessor

from tests.helpers.real_processors import unpack_processors

TEXT: Mapping[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
}


VISION: Mapping[str, Any] = {
    "depth": 3,  # llama.cpp's converter counts the layers of the projector by those of the tower
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 32,
}


TOKENS: Mapping[str, Any] = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "tie_word_embeddings": True,
}


FAMILIES: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    "qwen2_vl": ("qwen2_vl", {"mrope_section": [2, 3, 3]}, {"embed_dim": 32, "mlp_ratio": 2}),
    # 16 numbers a head: 8 pairs of sine and cosine, divided between time, height and width.
    "qwen2_5_vl": ("qwen2_vl", {"mrope_section": [2, 3, 3]}, {"fullatt_block_indexes": [2]}),
    "qwen3_vl": (
        "qwen3_vl",
        {"mrope_section": [2, 3, 3], "mrope_interleaved": True},
        {"deepstack_visual_indexes": [0]},
    ),
}
"""model_type -> processor, settings of the rotary positions, and settings of the vision tower."""


def build(family: str, shared_data: Path, folder: Path, **more: float) -> Path:
    """Save a small model of the family with random weights, and its processor, in one folder.

    ``more`` goes into the language model's configuration.
    """
    processor, rope, vision = FAMILIES[family]
    unpack_processors(shared_data, folder)
    text = {**TEXT, **more, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, **rope}}
    if family == "qwen3_vl":
        text["head_dim"] = 16
    config = CONFIG_MAPPING[family].from_dict(
        {"model_type": family, **TOKENS, "text_config": text, "vision_config": {**VISION, **vision}}
    )
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder / "model")
    AutoProcessor.from_pretrained(folder / "processors" / processor).save_pretrained(folder / "model")
    return folder / "model"
