"""Make the tiny model: train its tokenizer, build the architecture, teach it, save it with the Hub's tensor names.

python -m toolkit.tiny.make [--out FOLDER] [--steps N] [--seed N]
"""

import argparse
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AddedToken,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GemmaTokenizer,
)
from transformers.tokenization_utils_sentencepiece import SentencePieceExtractor

from toolkit.phantoms.chest import Film, make_film
from toolkit.phantoms.film import Rng, draw_film
from toolkit.tiny import FOLDER
from toolkit.tiny.lessons import Lesson, corpus, lesson

log = logging.getLogger(__name__)

Pixels = NDArray[np.float16]
"""Films x 3 x side x side, -1 to 1."""

SIDE = 112
IMAGE_TOKENS = 16
VOCABULARY = 1024
FILMS = 12_000
FILM_SIDE = 256
FIRST_FILM = 1_000_000
"""Far from the numbers that practice data use: the tiny model has seen no film of anybody's test split."""
BATCH = 32
LEARNING_RATE = 2e-3
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>")
IMAGE_SYMBOLS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
TURNS = ("<start_of_turn>", "<end_of_turn>")
TAGS = ("working_out", "SOLUTION", "diagnosis", "location", "bbox", "polygon")
SYMBOLS = (
    "\n",
    "\n\n",
    "<start_working_out>",
    "<end_working_out>",
    *(form.format(tag) for tag in TAGS[1:] for form in ("<{}>", "</{}>")),
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


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=3407)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        processor = build_processor(Path(folder), np.random.default_rng(options.seed))
        model = build_model(processor.tokenizer)
        teach(model, processor, options.steps, options.seed)
        save(model, processor, Path(folder), options.out)


def build_processor(folder: Path, rng: Rng) -> Gemma3Processor:
    """Train a SentencePiece tokenizer on the practice texts and put Gemma 3's processor around it."""
    films = [make_film(0, FIRST_FILM + i)[0] for i in range(3000)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus(films, rng)),
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
    """Gemma 3 with 4 language and 4 vision layers of width 128."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
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
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 14,
        "vision_use_head": False,
    }
    token = {name: _token_id(tokenizer, symbol) for name, symbol in IMAGE_SYMBOLS.items()}
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=token["boi_token"],
        eoi_token_index=token["eoi_token"],
        image_token_index=token["image_token"],
    )
    model = Gemma3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = [1, _token_id(tokenizer, TURNS[1])]
    return model


def teach(model: Gemma3ForConditionalGeneration, processor: Gemma3Processor, steps: int, seed: int) -> None:
    """AdamW with warm-up and cosine decay; the loss covers the answers."""
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    model.train()
    for step, batch in enumerate(_batches(processor, steps, seed)):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            log.info("step %d: loss %.4f", step, loss.item())


def save(model: Gemma3ForConditionalGeneration, processor: Gemma3Processor, spm: Path, out: Path) -> None:
    """Write weights in bfloat16 under the Hub's names, processor and SentencePiece model."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        model.eval().to(torch.bfloat16).save_pretrained(folder)
        weights = Path(folder) / "model.safetensors"
        tensors = {_hub_name(name): tensor for name, tensor in load_file(weights).items()}
        save_file(tensors, weights, {"format": "pt"})
        processor.save_pretrained(folder)
        shutil.copy(spm / "tokenizer.model", folder)
        if out.exists():
            shutil.rmtree(out)
        shutil.copytree(folder, out)


def _token_id(tokenizer: GemmaTokenizer, symbol: str) -> int:
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


def _batches(processor: Gemma3Processor, steps: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    rng = np.random.default_rng(seed)
    films, pixels = _draw_films(seed)
    for _ in range(steps):
        chosen = rng.integers(len(films), size=BATCH)
        yield _collate(processor, [lesson(films[i], rng) for i in chosen], pixels[chosen])


def _draw_films(seed: int) -> tuple[list[Film], Pixels]:
    pixels = np.empty((FILMS, 3, SIDE, SIDE), np.float16)
    films = []
    for i in range(FILMS):
        film, rng = make_film(seed, FIRST_FILM + i)
        light = draw_film(film.finding.name, film.place, FILM_SIDE, rng)
        small = cv2.resize(light, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        low, high = small.min(), small.max()
        pixels[i] = (small - low) / (high - low) * 2 - 1
        films.append(film)
    return films, pixels


def _collate(processor: Gemma3Processor, lessons: Sequence[Lesson], pixels: Pixels) -> dict[str, torch.Tensor]:
    tokenizer, rows, labels, kinds = processor.tokenizer, [], [], []
    image = processor.full_image_sequence
    for question, answer in lessons:
        prompt = f"<bos><start_of_turn>user\n{image}{question}<end_of_turn>\n<start_of_turn>model\n"
        head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        tail = tokenizer(f"{answer}<end_of_turn>", add_special_tokens=False)["input_ids"]
        ids = torch.tensor(head + tail)
        rows.append(ids)
        labels.append(torch.tensor([-100] * len(head) + tail))
        kinds.append((ids == tokenizer.image_token_id).long())
    ids = pad_sequence(rows, batch_first=True, padding_value=0)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        "token_type_ids": pad_sequence(kinds, batch_first=True),
        "pixel_values": torch.from_numpy(pixels.astype(np.float32)),
    }


def _rate(step: int, steps: int, warmup: int = 100) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _hub_name(name: str) -> str:
    """transformers 5 drops ``vision_model`` from a model built from its configuration; the Hub's files have it."""
    if "vision_tower." in name and "vision_tower.vision_model." not in name:
        return name.replace("vision_tower.", "vision_tower.vision_model.")
    return name


if __name__ == "__main__":
    main()
