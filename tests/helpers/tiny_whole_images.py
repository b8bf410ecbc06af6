"""Small models of families whose tower gets whole images: LLaVA, Mistral 3, PaliGemma, Gemma 4 and Llama 3.2 Vision."""

from tests.helpers.tiny_parts import (
    SQUARE,
    TOWER,
    Parts,
    Words,
    chat_template,
    classes,
    tower,
)

PINPOINTS = [[56, 56], [56, 112], [112, 56], [112, 112]]


def llava(words: Words) -> Parts:
    """Return LLaVA 1.5."""
    # As on the Hub, the template ends no turn, so that the tokenizer's EOS does.
    tokenizer = words.tokenizer(["<image>"], bos="<s>", eos="</s>")
    processor = classes.LlavaProcessor(
        image_processor=classes.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>\n", start="ROLE: ", end=" "),
    )
    config = classes.LlavaConfig(
        text_config=words.language("llama"),
        vision_config=tower("clip_vision_model"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return Parts(processor, config)


def llava_next(words: Words) -> Parts:
    """Return LLaVA-NeXT."""
    tokenizer = words.tokenizer(["[INST]", "[/INST]", "<image>"], bos="<s>", eos="</s>")
    processor = classes.LlavaNextProcessor(
        image_processor=classes.LlavaNextImageProcessor(
            size={"shortest_edge": 56}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS[1:]
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>\n", start="[INST]ROLE[/INST]", end="</s>"),
    )
    config = classes.LlavaNextConfig(
        text_config=words.language("mistral"),
        vision_config=tower("clip_vision_model"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS[1:],
    )
    return Parts(processor, config)


def llava_onevision(words: Words) -> Parts:
    """Return LLaVA-OneVision."""
    tokenizer = words.tokenizer(["<|im_start|>", "<image>", "<video>"])
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    processor = classes.LlavaOnevisionProcessor(
        image_processor=classes.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer=tokenizer,
        video_processor=classes.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chat_template("<image>\n"),
    )
    config = classes.LlavaOnevisionConfig(
        text_config=words.language("qwen2"),
        vision_config=tower("siglip_vision_model", vision_use_head=False),
        image_token_id=image,
        video_token_id=video,
        image_grid_pinpoints=PINPOINTS,
    )
    return Parts(processor, config)


def mistral3(words: Words) -> Parts:
    """Return Mistral 3."""
    names = ["[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer = words.tokenizer(names, bos="<s>", eos="</s>")
    processor = classes.PixtralProcessor(
        image_processor=classes.PixtralImageProcessor(
            size={"longest_edge": 112}, patch_size={"height": 14, "width": 14}
        ),
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=chat_template("[IMG]", bos="<s>", start="[INST]ROLE[/INST]", end="</s>"),
    )
    config = classes.Mistral3Config(
        text_config=words.language("mistral", head_dim=8),
        vision_config=tower("pixtral", head_dim=16, image_size=112),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )
    return Parts(processor, config)


def paligemma(words: Words) -> Parts:
    """Return PaliGemma 2."""
    tokenizer = words.tokenizer(["<start>"], bos="<bos>", eos="<eos>", image_token="<image>")
    images = classes.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 16
    processor = classes.PaliGemmaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        chat_template=chat_template("<image>", start="<start>ROLE ", end="<eos>"),
    )
    config = classes.PaliGemmaConfig(
        # The processor has added tokens of places and segments.
        text_config=words.language("gemma2", head_dim=8, vocab_size=len(tokenizer)),
        vision_config=tower("siglip_vision_model"),
        image_token_id=processor.image_token_id,
        projection_dim=32,
        hidden_size=32,
    )
    return Parts(processor, config)


def gemma4(words: Words) -> Parts:
    """Return Gemma 4."""
    named = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    tokenizer = words.tokenizer(["<|turn>", "<turn|>", "<|video|>"], bos="<bos>", eos="<eos>", **named)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn>", "<turn|>"]})
    processor = classes.Gemma4Processor(
        feature_extractor=classes.Gemma4AudioFeatureExtractor(),
        image_processor=classes.Gemma4ImageProcessor(max_soft_tokens=70, image_seq_length=70),
        tokenizer=tokenizer,
        video_processor=classes.Gemma4VideoProcessor(),
        image_seq_length=70,
        chat_template=chat_template("<|image|>", bos="<bos>", start="<|turn>ROLE\n", end="<turn|>\n"),
    )
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    text = {
        **words.language(),
        "head_dim": 8,
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": words.size,
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


def mllama(words: Words) -> Parts:
    """Return Llama 3.2 Vision."""
    tokenizer = words.tokenizer(["<|header|>", "<|image|>"], bos="<|begin_of_text|>", eos="<|eot_id|>")
    image = tokenizer.convert_tokens_to_ids("<|image|>")
    processor = classes.MllamaProcessor(
        image_processor=classes.MllamaImageProcessor(size=SQUARE, max_image_tiles=2),
        tokenizer=tokenizer,
        chat_template=chat_template("<|image|>", bos="<|begin_of_text|>", start="<|header|>ROLE\n", end="<|eot_id|>"),
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
    text = words.language(cross_attention_layers=[1], bos_token_id=1, eos_token_id=2)
    return Parts(processor, classes.MllamaConfig(text_config=text, vision_config=vision, image_token_index=image))
