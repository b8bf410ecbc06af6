"""Bytes that a training pass allocates and saves on the CPU: the reference for the memory formulas of plans."""

import json
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, BitsAndBytesConfig

from toolkit.models import lora as adapter
from toolkit.models.hf import disable_input_gradients
from toolkit.recipe import Lora

SHAPES = Path(__file__).parents[2] / "toolkit/planning/shapes"
IDS = {"image_token_id": 1500, "video_token_id": 1501, "vision_start_token_id": 1502, "vision_end_token_id": 1503}
TEXT = {
    "num_hidden_layers": 6,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOWER = {"depth": 4, "hidden_size": 160, "num_heads": 4, "out_hidden_size": 256}
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
SMALL: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "medgemma_4b": {
        "text_config": {**TEXT, "intermediate_size": 1024, "head_dim": 64, "sliding_window": 64},
        "vision_config": {
            "num_hidden_layers": 3,
            "hidden_size": 128,
            "intermediate_size": 448,
            "num_attention_heads": 4,
            "image_size": 448,
        },
        "": {"mm_tokens_per_image": 64, "image_token_index": 1500, "boi_token_index": 1501, "eoi_token_index": 1502},
    },
    "qwen2_vl_2b": {
        "text_config": {**TEXT, "intermediate_size": 1408, "rope_parameters": ROPE},
        "vision_config": {"depth": 4, "embed_dim": 160, "hidden_size": 256, "num_heads": 4},
        "": IDS,
    },
    "qwen2_5_vl_3b": {
        "text_config": {**TEXT, "intermediate_size": 1408, "rope_parameters": ROPE},
        "vision_config": {**TOWER, "intermediate_size": 428, "fullatt_block_indexes": [3]},
        "": IDS,
    },
    "qwen3_vl_8b": {
        "text_config": {
            **TEXT,
            "intermediate_size": 768,
            "num_attention_heads": 8,
            "head_dim": 64,
            "rope_parameters": {**ROPE, "mrope_section": [12, 10, 10], "mrope_interleaved": True},
        },
        "vision_config": {**TOWER, "intermediate_size": 640, "deepstack_visual_indexes": [1, 2]},
        "": IDS,
    },
}
"""Shape -> changes that make the architecture small: part of the configuration -> fields."""


class Allocated(TorchDispatchMode):
    """Count the bytes of living tensors that were created in the block: ``now`` and ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[Any, int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(one.untyped_storage()) for one in _tensors((args, kwargs))}
        output = function(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            storage = tensor.untyped_storage()
            key = id(storage)
            if key not in given and key not in self._alive:
                self._alive[key] = (weakref.ref(storage, partial(self._forget, key)), storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return output

    def _forget(self, key: int, _: object) -> None:
        self.now -= self._alive.pop(key)[1]


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def shape_fields(name: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((SHAPES / f"{name}.json").read_text(encoding="utf-8"))
    return fields


def small_fields(name: str) -> dict[str, Any]:
    """Return the configuration of a small model with this architecture."""
    fields = shape_fields(name)
    for part, smaller in SMALL[name].items():
        (fields[part] if part else fields).update(smaller)
    return fields


def base_model(fields: Mapping[str, Any], precision: str, folder: Path) -> Any:
    """Return the model with random weights in this precision, on the CPU."""
    torch.manual_seed(0)
    dtype = torch.float32 if precision == "32bit" else torch.bfloat16
    config = CONFIG_MAPPING[fields["model_type"]].from_dict(dict(fields))
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    if precision != "4bit":
        return model
    model.save_pretrained(folder)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, quantization_config=nf4, device_map={"": "cpu"}
    )


def trainable(model: Any, lora: Lora, *, checkpointing: bool) -> Any:
    """Return the model with an adapter in training mode, as the hf backend and TRL's trainers build it."""
    model = adapter.attach(model, lora, 0).train()
    model.config.use_cache = False
    disable_input_gradients(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def one_row(config: Any, text: int, side: int = 224) -> tuple[dict[str, torch.Tensor], int, int]:
    """Return the inputs of one row with one image, its image tokens and its patches."""
    if config.model_type == "gemma3":
        side, patch = config.vision_config.image_size, config.vision_config.patch_size
        tokens, patches, token = config.mm_tokens_per_image, (side // patch) ** 2, config.image_token_index
        pixels = {"pixel_values": torch.randn(1, 3, side, side)}
    else:
        patch, merge = config.vision_config.patch_size, config.vision_config.spatial_merge_size
        grid = side // patch // merge * merge
        tokens, patches, token = (grid // merge) ** 2, grid * grid, config.image_token_id
        pixels = {
            "pixel_values": torch.randn(patches, 3 * 2 * patch * patch),
            "image_grid_thw": torch.tensor([[1, grid, grid]]),
        }
    ids = torch.cat([torch.full((1, tokens), token), torch.randint(10, 1000, (1, text))], dim=1)
    kinds = "token_type_ids" if config.model_type == "gemma3" else "mm_token_type_ids"
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), kinds: (ids == token).long()}
    return {**inputs, **pixels}, tokens, patches
