"""Small models of families whose processor cuts images into tiles, or their patches into rows."""

from typing import Any

import transformers

from tests.helpers.tiny_parts import (
    SQUARE,
    TOWER,
    Parts,
    Words,
    chat_template,
    classes,
    tower,
)


def idefics(words: Words, family: str, *, tiles: bool) -> Parts:
    """Return Idefics3 or SmolVLM2. ``tiles``: images are cut into tiles."""
    cells = [f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3)]
    names = ["<|im_start|>", "<image>", "<fake_token_around_image>", "<global-img>", *cells]
    tokenizer = words.tokenizer(names, eos="<end_of_utterance>")
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
        chat_template=chat_template("<image>", start="<|im_start|>ROLE:", end="<end_of_utterance>\n"),
        **more,
    )
    config = getattr(transformers, f"{kind}Config")(
        text_config=words.language("llama"),
        vision_config={**TOWER},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    return Parts(processor, config)


def internvl(words: Words) -> Parts:
    """Return InternVL 3.5."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = words.tokenizer(["<|im_start|>"], **named)
    processor = classes.InternVLProcessor(
        image_processor=classes.GotOcr2ImageProcessor(size=SQUARE, max_patches=4),
        tokenizer=tokenizer,
        video_processor=classes.InternVLVideoProcessor(size=SQUARE),
        image_seq_length=4,
        chat_template=chat_template("<IMG_CONTEXT>\n"),
    )
    config = classes.InternVLConfig(
        text_config=words.language("qwen3", head_dim=8),
        vision_config={**TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return Parts(processor, config)


def lfm2_vl(words: Words) -> Parts:
    """Return LFM2-VL."""
    cells = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 4) for column in range(1, 4)]
    named = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail": "<|img_thumbnail|>",
    }
    tokenizer = words.tokenizer(["<|im_start|>", *cells], bos="<|startoftext|>", **named)
    processor = classes.Lfm2VlProcessor(
        image_processor=classes.Lfm2VlImageProcessor(
            tile_size=64, min_image_tokens=4, max_image_tokens=16, max_num_patches=64, min_tiles=2, max_tiles=2
        ),
        tokenizer=tokenizer,
        chat_template=chat_template("<image>", bos="<|startoftext|>"),
    )
    config = classes.Lfm2VlConfig(
        text_config=words.language("lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
        vision_config=tower("siglip2_vision_model", num_patches=16, patch_size=16, vision_use_head=False),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=32,
    )
    return Parts(processor, config)


def llama4(words: Words) -> Parts:
    """Return Llama 4."""
    names = ["<|header|>", "<|image|>", "<|patch|>", "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>"]
    tokenizer = words.tokenizer([*names, "<|tile_y_separator|>"], bos="<|begin_of_text|>", eos="<|eot|>")
    processor = classes.Llama4Processor(
        image_processor=classes.Llama4ImageProcessor(size=SQUARE, max_patches=4),
        tokenizer=tokenizer,
        patch_size=14,
        pixel_shuffle_ratio=0.5,
        chat_template=chat_template("<|image|>", bos="<|begin_of_text|>", start="<|header|>ROLE\n", end="<|eot|>"),
    )
    experts: dict[str, Any] = {"num_local_experts": 2, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 48}
    outputs = dict.fromkeys(["vision_output_dim", "projector_input_dim", "projector_output_dim"], 32)
    config = classes.Llama4Config(
        text_config=words.language(head_dim=8, **experts),
        vision_config={**TOWER, "intermediate_size": 128, **outputs},
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
    )
    return Parts(processor, config)


def ovis2(words: Words) -> Parts:
    """Return Ovis2."""
    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = words.tokenizer(["<|im_start|>", "<image>", "<IMG_ATOM>", *marks])
    processor = classes.Ovis2Processor(
        image_processor=classes.Ovis2ImageProcessor(size=SQUARE, max_patches=4),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=chat_template("<image>\n"),
    )
    config = classes.Ovis2Config(
        text_config=words.language("qwen2"),
        vision_config={**TOWER, "hidden_stride": 2, "vocab_size": 64},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(marks),
        vocab_size=words.size,
        hidden_size=32,
    )
    return Parts(processor, config)
