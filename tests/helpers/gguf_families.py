"""Small random models of the families whose GGUF files need more than a conversion: Gemma 4 and Qwen3.5."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import trl
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Gemma4VideoProcessor,
    Qwen3_5Config,
)
from transformers.models.gemma4 import Gemma4Processor

from tests.helpers.real_processors import unpack_processors
from toolkit import tiny

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
GEMMA4_TOKENS: Mapping[str, str] = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
TURNS = ("<|turn>", "<turn|>", "<|video|>", "<|think|>", "<|channel>", "<channel|>")
IMAGE_TOKENS = 70
HEAD, GLOBAL_HEAD = 8, 16
WIDTHS: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def build_gemma4(folder: Path) -> Path:
    """Save a Gemma 4 with the tokenizer of the tiny model. Its config.json has the fields of the Hub's files."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.FOLDER, extra_special_tokens=dict(GEMMA4_TOKENS))
    tokenizer.add_tokens(list(TURNS), special_tokens=True)
    number = tokenizer.convert_tokens_to_ids
    Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(max_soft_tokens=IMAGE_TOKENS, image_seq_length=IMAGE_TOKENS),
        tokenizer=tokenizer,
        video_processor=Gemma4VideoProcessor(),
        chat_template=(TEMPLATES / "gemma4.jinja").read_text(encoding="utf-8"),
        image_seq_length=IMAGE_TOKENS,
    ).save_pretrained(folder)
    text = {
        **WIDTHS,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "vocab_size_per_layer_input": len(tokenizer),
        "max_position_embeddings": 4096,
        "head_dim": HEAD,
        "global_head_dim": GLOBAL_HEAD,
        "hidden_size_per_layer_input": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "use_bidirectional_attention": "vision",
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**WIDTHS, "num_key_value_heads": 4, "num_hidden_layers": 2, "head_dim": HEAD}
    vision |= {"position_embedding_size": 630, "default_output_length": IMAGE_TOKENS}
    tokens: dict[str, Any] = {f"{name}_id": number(token) for name, token in GEMMA4_TOKENS.items()}
    tokens["video_token_id"] = number("<|video|>")
    config = Gemma4Config(text_config=text, vision_config=vision, audio_config=None, **tokens)
    torch.manual_seed(0)
    Gemma4ForConditionalGeneration(config).save_pretrained(folder)
    file = folder / "config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    del fields["text_config"]["per_layer_config"]
    fields["text_config"]["global_head_dim"] = GLOBAL_HEAD
    file.write_text(json.dumps(fields), encoding="utf-8")
    return folder


def build_qwen3_5(shared_data: Path, folder: Path) -> Path:
    """Save a Qwen3.5 with the processor of Qwen3-VL, which has the same tokenizer family. It has no MTP layers."""
    unpack_processors(shared_data, folder)
    processor = AutoProcessor.from_pretrained(folder / "processors/qwen3_vl")
    number = processor.tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0], "mrope_interleaved": True}
    text = {
        **WIDTHS,
        "num_hidden_layers": 4,
        "vocab_size": 151936,
        "head_dim": 16,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "mtp_num_hidden_layers": 1,
        "rope_parameters": {**rope, "partial_rotary_factor": 0.25},
        "tie_word_embeddings": True,
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen3_5Config(
        text_config=text,
        vision_config={**vision, "num_position_embeddings": 64},
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"
