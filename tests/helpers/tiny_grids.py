"""Small models of families whose tower gets patches with a grid: the Qwen-VLs and GLM-4V."""

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING

from tests.helpers.tiny_parts import Parts, Words, chat_template, classes


def _qwen(words: Words, kind: str, text: Mapping[str, Any], tower: Mapping[str, Any]) -> Parts:
    """Return a Qwen-VL. ``text`` and ``tower`` are its own fields of both configurations."""
    names = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = words.tokenizer(names)
    start, end, image, video = tokenizer.convert_tokens_to_ids(names[1:])
    whole, videos = classes.Qwen3VLProcessor, classes.Qwen3VLVideoProcessor
    if kind == "qwen2_5_vl":
        whole, videos = classes.Qwen2_5_VLProcessor, classes.Qwen2VLVideoProcessor
    vision = {**QWEN_TOWER, **tower}
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    processor = whole(
        image_processor=classes.Qwen2VLImageProcessor(patch_size=vision["patch_size"], merge_size=2, size=size),
        tokenizer=tokenizer,
        video_processor=videos(patch_size=vision["patch_size"]),
        chat_template=chat_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    config = CONFIG_MAPPING[kind].from_dict(
        {
            "model_type": kind,
            "image_token_id": image,
            "video_token_id": video,
            "vision_start_token_id": start,
            "vision_end_token_id": end,
            "text_config": words.language(**text),
            "vision_config": vision,
        }
    )
    return Parts(processor, config)


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}


def qwen2_5_vl(words: Words) -> Parts:
    """Return Qwen2.5-VL. llama.cpp's converter needs as many layers of its tower as its projector has parts."""
    tower = {"depth": 3, "patch_size": 14, "fullatt_block_indexes": [1]}
    return _qwen(words, "qwen2_5_vl", {"rope_parameters": _rope(1, 1, 2)}, tower)


def qwen3_vl(words: Words) -> Parts:
    """Return Qwen3-VL."""
    text = {"head_dim": 8, "rope_parameters": _rope(2, 1, 1, mrope_interleaved=True)}
    return _qwen(words, "qwen3_vl", text, {"deepstack_visual_indexes": [0]})


def qwen3_5(words: Words) -> Parts:
    """Return Qwen3.5: three layers with gated delta rules, then one with attention."""
    text = {
        "num_hidden_layers": 4,
        "head_dim": 16,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": _rope(1, 1, 0, mrope_interleaved=True, partial_rotary_factor=0.25),
    }
    return _qwen(words, "qwen3_5", text, {})


def glm4v(words: Words) -> Parts:
    """Return GLM-4.1V."""
    names = ["<|user|>", "<|assistant|>", "<|endofturn|>", "<|image|>", "<|begin_of_image|>", "<|end_of_image|>"]
    names += ["<|video|>", "<|begin_of_video|>", "<|end_of_video|>", "[gMASK]", "<sop>"]
    tokenizer = words.tokenizer(names, eos="<|endofturn|>")
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
    processor = classes.Glm4vProcessor(
        image_processor=classes.Glm4vImageProcessor(
            patch_size=14, merge_size=2, size={"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 112 * 112}
        ),
        tokenizer=tokenizer,
        video_processor=classes.Glm4vVideoProcessor(),
        # As on the Hub, the template ends no turn, so that the tokenizer's EOS does.
        chat_template=chat_template(
            "<|begin_of_image|><|image|><|end_of_image|>", bos="[gMASK]<sop>", start="<|ROLE|>\n", end=""
        ),
    )
    config = classes.Glm4vConfig(
        text_config=words.language(rope_parameters=_rope(1, 1, 0, partial_rotary_factor=0.5)),
        vision_config={**QWEN_TOWER, "patch_size": 14, "image_size": 56},
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
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
