"""Tokens of rows and images: how many there are, and which ones belong to images.

``processor`` is always a ``ProcessorMixin`` of transformers. This module does not import torch.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

from toolkit.errors import ModelError
from toolkit.models import template_trial
from toolkit.models.chat_template import adds_bos, encode_text, render_prompt, special_ids
from toolkit.models.families import IMAGE_TOKENS
from toolkit.models.messages import conversation


@dataclass(frozen=True, slots=True)
class Length:
    """Token counts of one row: the text of the prompt, its images, and the answer with its end of turn.

    ``earlier`` is the part of ``text`` that SFT supervises too: the earlier assistant turns of a conversation.
    """

    text: int
    images: int
    answer: int
    earlier: int = 0

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.text + self.images + self.answer


def find_image_ids(processor: Any) -> list[int]:
    """Return the tokens of images and their delimiters. A model must never generate one (EasyR1#110, trl#3847)."""
    tokenizer = processor.tokenizer
    names = {getattr(processor, name, None) for name in vars(processor) if _NAMES_IMAGE_TOKEN.search(name)}
    names |= {getattr(holder, name, None) for name in _IMAGE_TOKENS for holder in (processor, tokenizer)}
    tokens = {name for name in names if isinstance(name, str)} | IMAGE_TOKENS
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary[token] for token in tokens if token in vocabulary)


def special_pattern(processor: Any) -> str:
    """Return a regular expression that matches the model's special tokens and image tokens."""
    tokens = special_ids(processor) | set(find_image_ids(processor))
    names = [processor.tokenizer.convert_ids_to_tokens(token) for token in tokens]
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def count_tokens(processor: Any, prompt: str, sizes: Sequence[tuple[int, int]], answer: Sequence[int]) -> Length:
    """Return the token counts of a row without opening an image.

    Args:
        processor: The model's processor.
        prompt: The rendered prompt.
        sizes: (width, height) of each image in pixels.
        answer: Token ids of the answer.

    Raises:
        ModelError: The processor rejects images of these sizes.
    """
    if not sizes:
        return Length(len(encode_text(processor, prompt)), 0, len(answer))
    if hasattr(processor, "full_image_sequence"):  # Gemma 3: every image has the same sequence of tokens
        ids = encode_text(processor, prompt.replace(processor.boi_token, processor.full_image_sequence))
        images = ids.count(processor.tokenizer.image_token_id)
        return Length(len(ids) - images, images, len(answer))
    text = len(encode_text(processor, prompt))
    # Some processors cut a single image into tiles, but not several images of a row.
    images = sum(image_tokens(processor, sizes)) if _has_formula(processor) else _measured(processor, tuple(sizes))
    return Length(text - len(sizes), images, len(answer))


def image_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Return the number of tokens of each image of (width, height), alone in its row, with delimiters.

    Raises:
        ModelError: The processor rejects images of these sizes.
    """
    if not _has_formula(processor):
        return [_measured(processor, (size,)) for size in sizes]
    return _computed(processor, sizes)


def _computed(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    data = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in sizes])
    return [int(count) for count in data["num_image_tokens"]]


_PROBES = (((1000, 600),), ((600, 1000), (300, 300)))
"""(width, height) of the images of rows whose tokens are both computed and counted."""


@lru_cache(maxsize=4)
def _has_formula(processor: Any) -> bool:
    """Return whether the processor computes the number of tokens of an image from its size, and correctly.

    In transformers 5.15, the formula of Gemma 4 and PaliGemma leaves two tokens out, and that of LLaVA-OneVision
    ignores other images of the row.
    """
    if not hasattr(processor, "_get_num_multimodal_tokens"):
        return False
    if hasattr(processor, "full_image_sequence"):  # see count_tokens
        return True
    return all(sum(_computed(processor, sizes)) == _measured(processor, sizes) for sizes in _PROBES)


@lru_cache(maxsize=1 << 14)
def _measured(processor: Any, sizes: tuple[tuple[int, int], ...]) -> int:
    """Return the number of tokens of a row's images, with delimiters, by processing black images of these sizes."""
    prompt, ids = _process(processor, sizes)
    return len(ids) - len(encode_text(processor, prompt)) + len(sizes)


def _process(processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[str, list[int]]:
    """Return a prompt with black images of (width, height), and its tokens after processing."""
    prompt = render_prompt(processor, conversation("question", len(sizes)))
    images = [[Image.new("RGB", size) for size in sizes]]
    special = adds_bos(processor, prompt)
    try:
        ids = processor(text=[prompt], images=images, return_tensors="pt", add_special_tokens=special)["input_ids"][0]
    except template_trial.FAILURES as error:
        raise ModelError(
            "model.image_tokens_not_counted",
            "the processor must process an image for its tokens to be counted",
            place=type(processor).__name__,
            value=f"{template_trial.describe(error)}, for {', '.join(f'{w} x {h}' for w, h in sizes)}",
            remedy="Use another model, or lower images.max_side.",
        ) from error
    return prompt, ids.tolist()


def check_image_token(processor: Any, token: int) -> None:
    """Check that the processor inserts the token that the model replaces by the features of an image.

    Args:
        processor: The model's processor.
        token: ``image_token_id`` of the model's configuration.

    Raises:
        ModelError: It does not. The model would fail, or ignore its images.
    """
    prompt, ids = _process(processor, [_PROBES[0][0]])
    if token in ids:
        return
    repeated = (Counter(ids) - Counter(encode_text(processor, prompt))).most_common(1)
    named = [f", such as {one} ({processor.tokenizer.convert_ids_to_tokens(one)})" for one, _ in repeated]
    raise ModelError(
        "model.image_token_mismatch",
        f"image_token_id must be a token that the processor inserts for an image{''.join(named)}",
        place="config.json",
        value=token,
        remedy="Use config.json and the processor's files of the same model.",
    )


_IMAGE_TOKENS = ("image_token", "boi_token", "eoi_token", "video_token", "vision_start_token", "vision_end_token")

_NAMES_IMAGE_TOKEN = re.compile(r"(?:^|_)(?:image|img|video|audio|tile|boi|eoi|boa|eoa)_(?:\w+_)?(?:token|thumbnail)$")
"""Attributes of processors with an image token, such as image_break_token and end_of_img_token."""
