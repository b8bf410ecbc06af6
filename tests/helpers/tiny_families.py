"""Small models of many families with random weights: the real classes of transformers, with tokenizers of their own.

Each family has the layout of pixels, the image tokens and the token types of the real one. Nothing is read from a file.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # type: ignore[import-untyped]
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

classes: Any = transformers  # its type hints lack many of its classes


@dataclass(frozen=True, slots=True)
class Parts:
    """What a family's builder returns: the processor, and the configuration of the model."""

    processor: Any
    config: Any


WORDS = "is the lung left or right clear bright dark image yes no a b c d answer question which tissue shows none of"


def build_tiny(family: str, folder: Path) -> Path:
    """Save a model of a family with random weights and its processor in a folder. Return the folder.

    Args:
        family: A key of ``TINY``, the ``model_type``.
        folder: An existing folder.
    """
    parts = TINY[family].parts()
    path = folder / family
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(parts.config, dtype=torch.float32)
    model.save_pretrained(path)
    parts.processor.save_pretrained(path)
    return path


def _tokenizer(special: Sequence[str], *, bos: str = "", eos: str = "<|im_end|>", **named: str) -> Any:
    """Return a byte-level tokenizer. ``named`` are tokens that a processor reads as attributes of its tokenizer."""
    known = list(dict.fromkeys(["<pad>", bos or eos, eos, *special, *named.values()]))
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 100, special_tokens=known, initial_alphabet=alphabet)
    inner.train_from_iterator([WORDS] * 3, trainer)
    more = {"bos_token": bos} if bos else {}
    if named:
        more["extra_special_tokens"] = named  # type: ignore[assignment]
    kept = [token for token in known if token not in ("<pad>", bos, eos, *named.values())]
    if kept and not named:
        more["additional_special_tokens"] = kept  # type: ignore[assignment]
    return classes.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, pad_token="<pad>", **more)


def _template(image: str, *, bos: str = "", start: str = "<|im_start|>ROLE\n", end: str = "<|im_end|>\n") -> str:
    """Return a chat template. ``ROLE`` in ``start`` becomes the role of a turn."""
    before = "{{ '" + start.replace("\n", "\\n").replace("ROLE", "' + ROLE + '") + "' }}"
    part = "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}".replace("IMAGE", image)
    turn = before.replace("ROLE", "turn['role']") + "{% for part in turn['content'] %}" + part + "{% endfor %}" + end
    answer = "{% if add_generation_prompt %}" + before.replace("ROLE", "'assistant'") + "{% endif %}"
    return bos + "{% for turn in messages %}" + turn + "{% endfor %}" + answer


VOCABULARY = 500
LANGUAGE: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,  # smaller weights hardly let an answer depend on an image
    "pad_token_id": 0,
}
TOWER: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "initializer_range": 0.2,
}
SQUARE = {"height": 56, "width": 56}
PINPOINTS = [[56, 56], [56, 112], [112, 56], [112, 112]]


def _language(kind: str, **more: Any) -> dict[str, Any]:
    return {**LANGUAGE, "model_type": kind, **more}


def _tower(kind: str, **more: Any) -> dict[str, Any]:
    return {**TOWER, "model_type": kind, **more}


def _llava() -> Parts:
    # As on the Hub, the template ends no turn, so that the tokenizer's EOS does.
    tokenizer = _tokenizer(["<image>"], bos="<s>", eos="</s>")
    processor = classes.LlavaProcessor(
        image_processor=classes.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>\n", start="ROLE: ", end=" "),
    )
    config = classes.LlavaConfig(
        text_config=_language("llama"),
        vision_config=_tower("clip_vision_model"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return Parts(processor, config)


def _llava_next() -> Parts:
    tokenizer = _tokenizer(["[INST]", "[/INST]", "<image>"], bos="<s>", eos="</s>")
    processor = classes.LlavaNextProcessor(
        image_processor=classes.LlavaNextImageProcessor(
            size={"shortest_edge": 56}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS[1:]
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>\n", start="[INST]ROLE[/INST]", end="</s>"),
    )
    config = classes.LlavaNextConfig(
        text_config=_language("mistral"),
        vision_config=_tower("clip_vision_model"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS[1:],
    )
    return Parts(processor, config)


def _llava_onevision() -> Parts:
    tokenizer = _tokenizer(["<|im_start|>", "<image>", "<video>"])
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    processor = classes.LlavaOnevisionProcessor(
        image_processor=classes.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer=tokenizer,
        video_processor=classes.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_template("<image>\n"),
    )
    config = classes.LlavaOnevisionConfig(
        text_config=_language("qwen2"),
        vision_config=_tower("siglip_vision_model", vision_use_head=False),
        image_token_id=image,
        video_token_id=video,
        image_grid_pinpoints=PINPOINTS,
    )
    return Parts(processor, config)


def _idefics(family: str, tiles: bool) -> Parts:
    cells = [f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3)]
    names = ["<|im_start|>", "<image>", "<fake_token_around_image>", "<global-img>", *cells]
    tokenizer = _tokenizer(names, eos="<end_of_utterance>")
    kind = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[family]
    side = {"longest_edge": 112 if tiles else 56}
    images = getattr(transformers, f"{kind}ImageProcessor")(
        size=side, max_image_size={"longest_edge": 56}, do_image_splitting=tiles
    )
    more = {} if family == "idefics3" else {"video_processor": classes.SmolVLMVideoProcessor(size=side)}
    processor = getattr(transformers, f"{kind}Processor")(
        image_processor=images,
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=_template("<image>", start="<|im_start|>ROLE:", end="<end_of_utterance>\n"),
        **more,
    )
    config = getattr(transformers, f"{kind}Config")(
        text_config=_language("llama"),
        vision_config={**TOWER},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    return Parts(processor, config)


def _internvl() -> Parts:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(["<|im_start|>"], **named)
    processor = classes.InternVLProcessor(
        image_processor=classes.GotOcr2ImageProcessor(size=SQUARE, max_patches=4),
        tokenizer=tokenizer,
        video_processor=classes.InternVLVideoProcessor(size=SQUARE),
        image_seq_length=4,
        chat_template=_template("<IMG_CONTEXT>\n"),
    )
    config = classes.InternVLConfig(
        text_config=_language("qwen3", head_dim=8),
        vision_config={**TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return Parts(processor, config)


def _mistral3() -> Parts:
    names = ["[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer = _tokenizer(names, bos="<s>", eos="</s>")
    processor = classes.PixtralProcessor(
        image_processor=classes.PixtralImageProcessor(
            size={"longest_edge": 112}, patch_size={"height": 14, "width": 14}
        ),
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=_template("[IMG]", bos="<s>", start="[INST]ROLE[/INST]", end="</s>"),
    )
    config = classes.Mistral3Config(
        text_config=_language("mistral", head_dim=8),
        vision_config=_tower("pixtral", head_dim=16, image_size=112),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )
    return Parts(processor, config)


def _paligemma() -> Parts:
    tokenizer = _tokenizer(["<start>"], bos="<bos>", eos="<eos>", image_token="<image>")
    images = classes.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 16
    processor = classes.PaliGemmaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        chat_template=_template("<image>", start="<start>ROLE ", end="<eos>"),
    )
    config = classes.PaliGemmaConfig(
        # The processor adds 1,152 tokens of places and segments to the vocabulary.
        text_config=_language("gemma2", head_dim=8, vocab_size=VOCABULARY + 1200),
        vision_config=_tower("siglip_vision_model"),
        image_token_id=processor.image_token_id,
        projection_dim=32,
        hidden_size=32,
    )
    return Parts(processor, config)


def _lfm2_vl() -> Parts:
    cells = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 4) for column in range(1, 4)]
    named = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail": "<|img_thumbnail|>",
    }
    tokenizer = _tokenizer(["<|im_start|>", *cells], bos="<|startoftext|>", **named)
    processor = classes.Lfm2VlProcessor(
        image_processor=classes.Lfm2VlImageProcessor(
            tile_size=64, min_image_tokens=4, max_image_tokens=16, max_num_patches=64, min_tiles=1, max_tiles=2
        ),
        tokenizer=tokenizer,
        chat_template=_template("<image>", bos="<|startoftext|>"),
    )
    config = classes.Lfm2VlConfig(
        text_config=_language("lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
        vision_config=_tower("siglip2_vision_model", num_patches=16, patch_size=16, vision_use_head=False),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=32,
    )
    return Parts(processor, config)


def _patched(kind: str, processor: Any, images: Any, videos: Any, config: Mapping[str, Any]) -> Parts:
    """Return a family whose tower gets patches with a grid: the Qwen-VLs."""
    names = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _tokenizer(names)
    start, end, image, video = tokenizer.convert_tokens_to_ids(names[1:])
    placeholder = "<|vision_start|><|image_pad|><|vision_end|>"
    built = processor(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=_template(placeholder)
    )
    ids = {"image_token_id": image, "video_token_id": video, "vision_start_token_id": start}
    whole = {"model_type": kind, **ids, "vision_end_token_id": end, **config}
    return Parts(built, CONFIG_MAPPING[kind].from_dict(whole))


def _qwen_images(patch: int) -> Any:
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    return classes.Qwen2VLImageProcessor(patch_size=patch, merge_size=2, size=size)


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}


def _qwen2_5_vl() -> Parts:
    config = {
        "text_config": {**LANGUAGE, "rope_parameters": _rope(1, 1, 2)},
        "vision_config": {**QWEN_TOWER, "patch_size": 14, "fullatt_block_indexes": [1]},
    }
    videos = classes.Qwen2VLVideoProcessor(patch_size=14)
    return _patched("qwen2_5_vl", classes.Qwen2_5_VLProcessor, _qwen_images(14), videos, config)


def _qwen3_vl() -> Parts:
    config = {
        "text_config": {**LANGUAGE, "head_dim": 8, "rope_parameters": _rope(2, 1, 1, mrope_interleaved=True)},
        "vision_config": {**QWEN_TOWER, "deepstack_visual_indexes": [0]},
    }
    videos = classes.Qwen3VLVideoProcessor(patch_size=16)
    return _patched("qwen3_vl", classes.Qwen3VLProcessor, _qwen_images(16), videos, config)


def _qwen3_5() -> Parts:
    text = {
        **LANGUAGE,
        "num_hidden_layers": 4,  # three with gated delta rules, then one with attention
        "head_dim": 16,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": _rope(1, 1, 0, mrope_interleaved=True, partial_rotary_factor=0.25),
    }
    videos = classes.Qwen3VLVideoProcessor(patch_size=16)
    config = {"text_config": text, "vision_config": QWEN_TOWER}
    return _patched("qwen3_5", classes.Qwen3VLProcessor, _qwen_images(16), videos, config)


def _glm4v() -> Parts:
    names = ["<|user|>", "<|assistant|>", "<|endofturn|>", "<|image|>", "<|begin_of_image|>", "<|end_of_image|>"]
    names += ["<|video|>", "<|begin_of_video|>", "<|end_of_video|>", "[gMASK]", "<sop>"]
    tokenizer = _tokenizer(names, eos="<|endofturn|>")
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
    processor = classes.Glm4vProcessor(
        image_processor=classes.Glm4vImageProcessor(
            patch_size=14, merge_size=2, size={"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 112 * 112}
        ),
        tokenizer=tokenizer,
        video_processor=classes.Glm4vVideoProcessor(),
        # As on the Hub, the template ends no turn, so that the tokenizer's EOS does.
        chat_template=_template(
            "<|begin_of_image|><|image|><|end_of_image|>", bos="[gMASK]<sop>", start="<|ROLE|>\n", end=""
        ),
    )
    config = classes.Glm4vConfig(
        text_config={**LANGUAGE, "rope_parameters": _rope(1, 1, 0, partial_rotary_factor=0.5)},
        vision_config={**QWEN_TOWER, "patch_size": 14, "image_size": 56},
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
    )
    return Parts(processor, config)


def _gemma4() -> Parts:
    named = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    tokenizer = _tokenizer(["<|turn>", "<turn|>", "<|video|>"], bos="<bos>", eos="<eos>", **named)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn>", "<turn|>"]})
    processor = classes.Gemma4Processor(
        feature_extractor=classes.Gemma4AudioFeatureExtractor(),
        image_processor=classes.Gemma4ImageProcessor(max_soft_tokens=70, image_seq_length=70),
        tokenizer=tokenizer,
        video_processor=classes.Gemma4VideoProcessor(),
        image_seq_length=70,
        chat_template=_template("<|image|>", bos="<bos>", start="<|turn>ROLE\n", end="<turn|>\n"),
    )
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    text = {
        **LANGUAGE,
        "head_dim": 8,
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": VOCABULARY,
        "layer_types": ["sliding_attention", "full_attention"],
        "use_bidirectional_attention": "vision",
        "num_kv_shared_layers": 0,
    }
    vision = {**TOWER, "patch_size": 16, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 630}
    config = classes.Gemma4Config(
        text_config=text,
        vision_config={**vision, "default_output_length": 70},
        audio_config=None,
        image_token_id=ids["image_token"],
        boi_token_id=ids["boi_token"],
        eoi_token_id=ids["eoi_token"],
        audio_token_id=ids["audio_token"],
        boa_token_id=ids["boa_token"],
        eoa_token_index=ids["eoa_token"],
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
    )
    return Parts(processor, config)


def _mllama() -> Parts:
    tokenizer = _tokenizer(["<|header|>", "<|image|>"], bos="<|begin_of_text|>", eos="<|eot_id|>")
    image = tokenizer.convert_tokens_to_ids("<|image|>")
    processor = classes.MllamaProcessor(
        image_processor=classes.MllamaImageProcessor(size=SQUARE, max_image_tiles=2),
        tokenizer=tokenizer,
        chat_template=_template("<|image|>", bos="<|begin_of_text|>", start="<|header|>ROLE\n", end="<|eot_id|>"),
    )
    vision = {
        **{name: value for name, value in TOWER.items() if name != "num_attention_heads"},
        "attention_heads": 2,
        "num_global_layers": 1,
        "max_num_tiles": 2,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 96,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    text = {**LANGUAGE, "cross_attention_layers": [1], "bos_token_id": 1, "eos_token_id": 2}
    return Parts(processor, classes.MllamaConfig(text_config=text, vision_config=vision, image_token_index=image))


def _llama4() -> Parts:
    names = ["<|header|>", "<|image|>", "<|patch|>", "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>"]
    tokenizer = _tokenizer([*names, "<|tile_y_separator|>"], bos="<|begin_of_text|>", eos="<|eot|>")
    processor = classes.Llama4Processor(
        image_processor=classes.Llama4ImageProcessor(size=SQUARE, max_patches=4),
        tokenizer=tokenizer,
        patch_size=14,
        pixel_shuffle_ratio=0.5,
        chat_template=_template("<|image|>", bos="<|begin_of_text|>", start="<|header|>ROLE\n", end="<|eot|>"),
    )
    experts = {"num_local_experts": 2, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 48}
    outputs = dict.fromkeys(["vision_output_dim", "projector_input_dim", "projector_output_dim"], 32)
    config = classes.Llama4Config(
        text_config={**LANGUAGE, "head_dim": 8, **experts},
        vision_config={**TOWER, "intermediate_size": 128, **outputs},
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
    )
    return Parts(processor, config)


def _ovis2() -> Parts:
    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = _tokenizer(["<|im_start|>", "<image>", "<IMG_ATOM>", *marks])
    processor = classes.Ovis2Processor(
        image_processor=classes.Ovis2ImageProcessor(size=SQUARE, max_patches=4),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=_template("<image>\n"),
    )
    config = classes.Ovis2Config(
        text_config=_language("qwen2"),
        vision_config={**TOWER, "hidden_stride": 2, "vocab_size": 64},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(marks),
        vocab_size=VOCABULARY,
        hidden_size=32,
    )
    return Parts(processor, config)


QWEN_TOWER: Mapping[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 16,
    "num_position_embeddings": 64,
    "initializer_range": 0.2,
}


@dataclass(frozen=True, slots=True)
class TinyFamily:
    """A family of the matrix: its name for the documentation, its builder, and a package that it needs beside ours."""

    name: str
    parts: Callable[[], Parts]
    package: str = ""

    @property
    def installed(self) -> bool:
        return not self.package or find_spec(self.package) is not None


TINY: Mapping[str, TinyFamily] = {
    "gemma4": TinyFamily("Gemma 4", _gemma4),
    "qwen2_5_vl": TinyFamily("Qwen2.5-VL", _qwen2_5_vl),
    "qwen3_vl": TinyFamily("Qwen3-VL", _qwen3_vl),
    "qwen3_5": TinyFamily("Qwen3.5, Qwen3.6", _qwen3_5),
    "llava": TinyFamily("LLaVA 1.5", _llava),
    "llava_next": TinyFamily("LLaVA-NeXT", _llava_next),
    "llava_onevision": TinyFamily("LLaVA-OneVision", _llava_onevision),
    "smolvlm": TinyFamily("SmolVLM2", functools.partial(_idefics, "smolvlm", tiles=False), "num2words"),
    "idefics3": TinyFamily("Idefics3", functools.partial(_idefics, "idefics3", tiles=True)),
    "internvl": TinyFamily("InternVL 3.5", _internvl),
    "mistral3": TinyFamily("Mistral 3, Ministral 3", _mistral3),
    "paligemma": TinyFamily("PaliGemma 2", _paligemma),
    "lfm2_vl": TinyFamily("LFM2-VL", _lfm2_vl),
    "glm4v": TinyFamily("GLM-4.1V", _glm4v),
    "mllama": TinyFamily("Llama 3.2 Vision", _mllama),
    "llama4": TinyFamily("Llama 4", _llama4),
    "ovis2": TinyFamily("Ovis2", _ovis2),
}
"""Families by model_type. Gemma 3 is the model that ships with the package."""
