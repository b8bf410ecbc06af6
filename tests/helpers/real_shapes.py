"""Model folders without weights: the real sizes of a model in config.json, and its processor with a small vocabulary.

Token ids are those of the small vocabulary. All other fields that decide shapes are those of the named models.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.helpers.tiny_families import TINY
from tests.helpers.tiny_parts import Parts, classes

SIZES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "internvl": {  # InternVL3.5-1B-HF
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": [448, 448],
            "patch_size": [14, 14],
        },
    },
    "mllama": {  # Llama-3.2-11B-Vision-Instruct
        "text_config": {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        },
        "vision_config": {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_global_layers": 8,
            "attention_heads": 16,
            "image_size": 560,
            "patch_size": 14,
            "max_num_tiles": 4,
            "vision_output_dim": 7680,
            "intermediate_layers_indices": [3, 7, 15, 23, 30],
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        },
    },
    "mistral3": {  # Mistral-Small-3.1-24B-Instruct-2503
        "text_config": {
            "vocab_size": 131072,
            "hidden_size": 5120,
            "intermediate_size": 32768,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "head_dim": 64,
            "image_size": 1540,
            "patch_size": 14,
        },
    },
    "ovis2": {  # Ovis2-1B-hf
        "": {"hidden_size": 896, "vocab_size": 151936},
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
        },
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "image_size": 448,
            "patch_size": 14,
            "hidden_stride": 2,
            "vocab_size": 65536,
        },
    },
    "smolvlm": {  # SmolVLM2-256M-Video-Instruct
        "": {"scale_factor": 4},
        "text_config": {
            "vocab_size": 49280,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
    },
}
"""model_type -> section of config.json ("": the top level) -> fields."""


def build_real_shape(family: str, folder: Path) -> Path:
    """Save the configuration and the processor of a model of real size. Return the folder.

    A file of one number replaces the weights, which the check on the real architecture does not read.

    Args:
        family: A key of ``SIZES``, the ``model_type``.
        folder: An existing folder.
    """
    parts = TINY[family].parts()
    _resize(parts)
    path = folder / family
    fields = parts.config.to_dict()
    for section, sizes in SIZES[family].items():
        part = fields[section] if section else fields
        for derived in ("layer_types", "head_dim"):  # those of the small model
            part.pop(derived, None)
        part.update(sizes)
    type(parts.config).from_dict(fields).save_pretrained(path)
    parts.processor.save_pretrained(path)
    save_file({"unused": torch.zeros(1)}, path / "model.safetensors")
    return path


def _resize(parts: Parts) -> None:
    """Give the processor the image sizes of the real model."""
    processor, kind = parts.processor, parts.config.model_type
    if kind == "internvl":
        processor.image_processor = classes.GotOcr2ImageProcessor(size=_square(448), max_patches=12)
        processor.image_seq_length = 256
    elif kind == "mllama":
        processor.image_processor = classes.MllamaImageProcessor(size=_square(560), max_image_tiles=4)
    elif kind == "mistral3":
        patch = {"height": 14, "width": 14}
        processor.image_processor = classes.PixtralImageProcessor(size={"longest_edge": 1540}, patch_size=patch)
    elif kind == "ovis2":
        processor.image_processor = classes.Ovis2ImageProcessor(size=_square(448), max_patches=9)
        processor.image_seq_length = 256
    else:
        size, most = {"longest_edge": 2048}, {"longest_edge": 512}
        processor.image_processor = classes.SmolVLMImageProcessor(
            size=size, max_image_size=most, do_image_splitting=False
        )
        processor.image_seq_len = 64


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}
