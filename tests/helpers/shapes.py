"""Models of the real architectures and sizes with random weights, in the file layout of the Hub.

Time and GPU memory are those of trained models, but completions never end. Configurations are those of
toolkit/planning/shapes. Gemma has the tokenizer of the tiny model. Qwen2-VL, Qwen2.5-VL (with the tokens and image
processing of Qwen2-VL) and Qwen3-VL have theirs in processors.tar.gz of the real data.
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
"""Part of a configuration -> values of a small model. Fields that the configuration lacks are ignored."""


MERGES = 4000
"""Number of merges in a small model's byte-level tokenizer."""
QWEN_TOKENS: Mapping[str, str] = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
"""Field of a Qwen configuration -> its token."""


def write_model(name: str, folder: Path, data: Path, *, small: bool, layers: int | None = None) -> None:
    """Write the model ``name`` of ``SHAPES`` with weights of 16 bits (``small``: of a few layers), and its processor.

    ``data`` has processors.tar.gz, for Qwen models. ``layers`` keeps only the first layers of the language model.
    """
    fields = json.loads((SHAPES / f"{name}.json").read_text(encoding="utf-8"))
    if layers is not None:
        fields["text_config"]["num_hidden_layers"] = layers
    if small:
        _shrink(fields)
    config = CONFIG_MAPPING[fields["model_type"]].from_dict(fields)
    processor = _processor(fields["model_type"], folder.parent, config, data, small=small)
    if fields["model_type"] == "gemma3":  # the tiny model's tokenizer has other ids for the image tokens
        for token in ("boi", "eoi", "image"):
            setattr(config, f"{token}_token_index", getattr(processor.tokenizer, f"{token}_token_id"))
        config.eos_token_id = processor.tokenizer.eos_token_id
        if small:  # most parameters would be embeddings of tokens that this tokenizer lacks
            config.text_config.vocab_size = len(processor.tokenizer)
    elif small:
        _renumber(config, processor.tokenizer)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    for name, weight in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):  # zeros in a new Gemma 3, which ignores images then
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    del model
    release()


def release() -> None:
    """Free unused memory, including the CUDA cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _shrink(fields: dict[str, Any]) -> None:
    for part, smaller in SMALL.items():
        target = fields[part] if part else fields
        target |= {key: value for key, value in smaller.items() if key in target}
    if "embed_dim" in fields["vision_config"]:  # Qwen2-VL: hidden_size is the language model's
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
    family = model_type if model_type == "qwen3_vl" else "qwen2_vl"
    if small:
        _shorten(folder / "processors" / family / "tokenizer.json")
    return AutoProcessor.from_pretrained(folder / "processors" / family)


def _shorten(file: Path) -> None:
    """Keep the first merges of a byte-level tokenizer, and renumber its special tokens after the other tokens.

    With 152,000 tokens, the output head would take nearly all parameters and CPU time of a small model.
    """
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    model["merges"] = model["merges"][:MERGES]
    kept = {*ByteLevel.alphabet(), *(first + second for first, second in model["merges"])}
    model["vocab"] = {token: number for number, token in enumerate(sorted(kept, key=model["vocab"].__getitem__))}
    for number, token in enumerate(tokenizer["added_tokens"], start=len(kept)):
        token["id"] = number
    file.write_text(json.dumps(tokenizer), encoding="utf-8")


def _renumber(config: Any, tokenizer: Any) -> None:
    """Set the ids of the special tokens in a Qwen configuration to those of the tokenizer."""
    for field, token in QWEN_TOKENS.items():
        setattr(config, field, tokenizer.convert_tokens_to_ids(token))
    text = config.text_config
    text.vocab_size = len(tokenizer)
    text.bos_token_id, text.eos_token_id, text.pad_token_id = None, tokenizer.eos_token_id, tokenizer.pad_token_id
