"""Tokenizer, processor and untrained architecture of the tiny model."""

from pathlib import Path

import sentencepiece
import torch
from transformers import (
    AddedToken,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GemmaTokenizer,
)
from transformers.tokenization_utils_sentencepiece import SentencePieceExtractor

from tests.tiny_training.curriculum import corpus
from tests.tiny_training.turns import SIDE
from toolkit.synthetic import Rng

IMAGE_TOKENS = 16
WIDTH = 128
VOCABULARY = 1024
TEXTS = 3000
"""Images whose turns train the tokenizer."""
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>")
IMAGE_SYMBOLS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
TURNS = ("<start_of_turn>", "<end_of_turn>")
TAGS = ("SOLUTION", "diagnosis", "location", "bbox", "polygon")
KEYS = (
    "Short Term",
    "last_action",
    "last_observation",
    "last_lesson",
    "Long Term",
    "overall_progress",
    "completed_subtasks",
    "remaining_subtasks",
    "known_pitfalls",
    "recurring_issues",
    "Reason",
    "Predicted",
    "predicted_action",
    "action",
    "target",
    "coords",
)
"""Keys in the answers of the task ``steps``. Each quoted key is one token."""
SYMBOLS = (
    "user",
    "model",
    "\n",
    "\n\n",
    "<start_working_out>",
    "<end_working_out>",
    *(form.format(tag) for tag in TAGS for form in ("<{}>", "</{}>")),
    *(f'"{key}"' for key in KEYS),
)
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- macro text_of(content) -%}
    {%- if content is string -%}{{- content | trim -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}{{- '<start_of_image>' -}}
            {%- elif part.type == 'text' -%}{{- part.text | trim -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set first = namespace(prefix='') -%}
{%- if messages[0].role == 'system' -%}
    {%- set first.prefix = text_of(messages[0].content) + '\\n\\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' -}}
    {%- if loop.first -%}{{- first.prefix -}}{%- endif -%}
    {{- text_of(message.content) + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""


def build_processor(folder: Path, first: int, rng: Rng) -> Gemma3Processor:
    """Train a SentencePiece tokenizer on the curriculum and return it in a Gemma 3 processor.

    ``first`` is the first image number. ``folder`` gets ``tokenizer.model``.
    """
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(0, first, TEXTS, rng),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        character_coverage=1.0,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece=CONTROL[0],
        eos_piece=CONTROL[1],
        bos_piece=CONTROL[2],
        unk_piece=CONTROL[3],
        control_symbols=[*TURNS, *IMAGE_SYMBOLS.values()],
        user_defined_symbols=list(SYMBOLS),
        minloglevel=2,
    )
    images = Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE})
    tokenizer = _as_gemma(folder / "tokenizer.model")
    return Gemma3Processor(images, tokenizer, chat_template=CHAT_TEMPLATE, image_seq_length=IMAGE_TOKENS)


def build_model(tokenizer: GemmaTokenizer) -> Gemma3ForConditionalGeneration:
    """Return an untrained Gemma 3 with 4 language and 4 vision layers of width 128."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "max_position_embeddings": 2048,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 14,
        "vision_use_head": False,
    }
    token = {name: token_id(tokenizer, symbol) for name, symbol in IMAGE_SYMBOLS.items()}
    ends = [1, token_id(tokenizer, TURNS[1])]
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=token["boi_token"],
        eoi_token_index=token["eoi_token"],
        image_token_index=token["image_token"],
    )
    config.eos_token_id = ends
    model = Gemma3ForConditionalGeneration(config)
    # transformers initialises this projection with zeros, which would block all image information.
    projection = model.model.multi_modal_projector.mm_input_projection_weight
    torch.nn.init.normal_(projection, std=projection.shape[0] ** -0.5)
    model.generation_config.eos_token_id = ends
    return model


def token_id(tokenizer: GemmaTokenizer, symbol: str) -> int:
    """Return the id of a symbol that is one token.

    Raises:
        TypeError: The symbol is not one token.
    """
    found = tokenizer.convert_tokens_to_ids(symbol)
    if not isinstance(found, int):
        raise TypeError(f"{symbol!r} must be one token")
    return found


def _as_gemma(model_file: Path) -> GemmaTokenizer:
    vocabulary, _, merges = SentencePieceExtractor(str(model_file)).extract(GemmaTokenizer)
    tokenizer = GemmaTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]
        mask_token=None,  # type: ignore[arg-type]
        extra_special_tokens=IMAGE_SYMBOLS,
        clean_up_tokenization_spaces=False,
        add_bos_token=True,
    )
    tokenizer.add_tokens([AddedToken(symbol, normalized=False, special=True) for symbol in TURNS])
    tokenizer.add_tokens([AddedToken(symbol, normalized=False, special=False) for symbol in SYMBOLS])
    return tokenizer
