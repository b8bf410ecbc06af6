"""Write models of the real architectures and sizes with random parameters to a folder, in the Hub's layout.

Their time and GPU memory are those of trained models. Their completions never end. Configurations are those in
toolkit/planning/shapes. Gemma's tokenizer is that of the tiny model. The tokenizers of Qwen2-VL, Qwen2.5-VL (which has
the same tokens and image processing as Qwen2-VL) and Qwen3-VL are in processors.tar.gz of the real data.
"""

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel  # type: ignore[import-untyped]
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, AutoProcessor, Gemma3Processor

from tests.helpers.real_processors import unpack_processors
from toolkit import tiny

SHAPES = Path(__file__).resolve().parents[2] / "toolkit/planning/shapes"

WIDTH = 128
SMALL: Mapping[str, Mapping[str, Any]] = {
    "": {"mm_tokens_per_image": 16},
    "text_config": {
        "num_hidden_layers": 2,
        "hidden_size": WIDTH,
        "intermediate_size": 256,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    },
    "vision_config": {
        "num_hidden_layers": 1,
        "depth": 1,
        "fullatt_block_indexes": [0],
        "deepstack_visual_indexes": [0],
        "hidden_size": 64,
        "embed_dim": 64,
        "out_hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_heads": 4,
        "image_size": 112,
    },
}
"""Part of a configuration -> values that make it small, for the fields that it has."""

MERGES = 4000
"""Number of merges in a small model's byte-level tokenizer."""
QWEN_TOKENS: Mapping[str, str] = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
"""Field of a Qwen configuration -> token of the number in it."""


def write_model(name: str, folder: Path, data: Path, *, small: bool, layers: int | None = None) -> None:
    """Write the model ``name`` of ``SHAPES`` in 16 bits, and its processor.

    Args:
        name: file in ``SHAPES``, without its suffix.
        folder: of the model.
        data: folder of processors.tar.gz, for Qwen models.
        small: only a few narrow layers.
        layers: number of layers of the language model. None: all.
    """
    fields = json.loads((SHAPES / f"{name}.json").read_text(encoding="utf-8"))
    if layers is not None:
        fields["text_config"]["num_hidden_layers"] = layers
    if small:
        _shrink(fields)
    config = CONFIG_MAPPING[fields["model_type"]].from_dict(fields)
    processor = _processor(fields["model_type"], folder.parent, config, data, small=small)
    if fields["model_type"] == "gemma3":  # The tiny model's tokenizer has other numbers for image tokens.
        for token in ("boi", "eoi", "image"):
            setattr(config, f"{token}_token_index", getattr(processor.tokenizer, f"{token}_token_id"))
        config.eos_token_id = processor.tokenizer.eos_token_id
        if small:  # Otherwise most parameters would be for tokens that this tokenizer lacks.
            config.text_config.vocab_size = len(processor.tokenizer)
    elif small:
        _renumber(config, processor.tokenizer)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    for name, weight in model.named_parameters():
        if name.endswith(
            "mm_input_projection_weight"
        ):  # Gemma 3 initialises them with zeros, and images would have no effect.
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    del model
    release()


def release() -> None:
    """Return unused memory to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _shrink(fields: dict[str, Any]) -> None:
    for part, smaller in SMALL.items():
        target = fields[part] if part else fields
        target |= {key: value for key, value in smaller.items() if key in target}
    if "embed_dim" in fields["vision_config"]:  # In Qwen2-VL, hidden_size is that of the language model.
        fields["vision_config"]["hidden_size"] = WIDTH


def _processor(model_type: str, folder: Path, config: Any, data: Path, *, small: bool) -> Any:
    if model_type == "gemma3":
        processor = AutoProcessor.from_pretrained(tiny.FOLDER)
        side = config.vision_config.image_size
        processor.image_processor.size = {"height": side, "width": side}
        return Gemma3Processor(
            processor.image_processor,
            processor.tokenizer,
            chat_template=processor.chat_template,
            image_seq_length=config.mm_tokens_per_image,
        )
    unpack_processors(data, folder)
    files = model_type if model_type == "qwen3_vl" else "qwen2_vl"
    if small:
        _shorten(folder / "processors" / files / "tokenizer.json")
    return AutoProcessor.from_pretrained(folder / "processors" / files)


def _shorten(file: Path) -> None:
    """Keep the first merges of a byte-level tokenizer, and number its special tokens after the remaining ones.

    Otherwise, the output head for 152,000 tokens would have most parameters of a small model, and take most of its time
    on a CPU.
    """
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    model["merges"] = model["merges"][:MERGES]
    tokens = {*ByteLevel.alphabet(), *(first + second for first, second in model["merges"])}
    model["vocab"] = {token: number for number, token in enumerate(sorted(tokens, key=model["vocab"].__getitem__))}
    for number, token in enumerate(tokenizer["added_tokens"], start=len(tokens)):
        token["id"] = number
    file.write_text(json.dumps(tokenizer), encoding="utf-8")


def _renumber(config: Any, tokenizer: Any) -> None:
    """Set the special tokens of a Qwen configuration to the tokenizer's numbers."""
    for field, token in QWEN_TOKENS.items():
        setattr(config, field, tokenizer.convert_tokens_to_ids(token))
    text = config.text_config
    text.vocab_size = len(tokenizer)
    text.bos_token_id, text.eos_token_id, text.pad_token_id = None, tokenizer.eos_token_id, tokenizer.pad_token_id
