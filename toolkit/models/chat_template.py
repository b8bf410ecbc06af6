"""Rendering with the model's own chat template: prompts, turn ends, image placeholders, token counts.

No text is built by hand: what is trained, sampled and evaluated comes from the same template. ``processor`` is a
transformers ProcessorMixin throughout; nothing here imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import ModelError

Message = dict[str, Any]
_SENTINEL = "SENTINEL"


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The token with which the chat template ends an answer; for Gemma that is not the tokenizer's EOS."""

    text: str
    id: int


@dataclass(frozen=True, slots=True)
class Length:
    """Tokens of one row: the prompt's text, its images, and the answer with its turn end."""

    text: int
    images: int
    answer: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.text + self.images + self.answer


def conversation(question: str, images: int, system: str | None = None) -> list[Message]:
    """One user turn: the placeholders of ``images`` pictures, then the question; a system turn before it if given."""
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
    turns: list[Message] = [{"role": "user", "content": content}]
    if system:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return turns


def render_prompt(processor: Any, messages: Sequence[Message]) -> str:
    """The text up to where the model begins to answer, with one placeholder an image."""
    return str(processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def find_turn_end(processor: Any) -> TurnEnd:
    """The first special token that the template writes after an answer.

    Raises:
        ModelError: the template ends an answer with no special token, so generation could not know where to stop.
    """
    messages = [
        *conversation("question", 0),
        {"role": "assistant", "content": [{"type": "text", "text": _SENTINEL}]},
    ]
    text = str(processor.apply_chat_template(messages, tokenize=False))
    tail = text.rpartition(_SENTINEL)[2]
    special = special_ids(processor)
    for token in processor.tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token in special:
            return TurnEnd(processor.tokenizer.convert_ids_to_tokens(token), token)
    raise ModelError(
        "model.chat_template_without_turn_end",
        "the chat template must end an answer with a special token",
        value=tail,
        remedy="Give the processor a chat template with an end-of-turn token, such as <end_of_turn> or <|im_end|>.",
    )


def find_image_ids(processor: Any) -> list[int]:
    """Tokens that stand for pictures or their borders: a model must never generate one (EasyR1#110, trl#3847)."""
    tokenizer = processor.tokenizer
    names = {getattr(processor, name, None) for name in _IMAGE_TOKENS} | {
        getattr(tokenizer, name, None) for name in _IMAGE_TOKENS
    }
    tokens = {name for name in names if isinstance(name, str)} | set(_KNOWN_IMAGE_TOKENS)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary[token] for token in tokens if token in vocabulary)


def special_ids(processor: Any) -> set[int]:
    """Tokens that mean something to the model besides their letters: turns, pictures, padding."""
    tokenizer = processor.tokenizer
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def adds_bos(processor: Any, text: str) -> bool:
    """Whether tokenizing may add special tokens: not where the template wrote the BOS itself (no double BOS)."""
    bos = processor.tokenizer.bos_token
    return not (bos and text.startswith(bos))


def encode_text(processor: Any, text: str) -> list[int]:
    """Token ids of a rendered text without expanding its image placeholders."""
    return list(processor.tokenizer(text, add_special_tokens=adds_bos(processor, text))["input_ids"])


def encode_answer(processor: Any, answer: str, end: TurnEnd) -> list[int]:
    """Token ids of an answer and its turn end: exactly what SFT's loss covers."""
    return [*processor.tokenizer(answer, add_special_tokens=False)["input_ids"], end.id]


def count_tokens(processor: Any, prompt: str, sizes: Sequence[tuple[int, int]], answer: Sequence[int]) -> Length:
    """Tokens of a row whose images have these (width, height) in pixels, without opening an image.

    Raises:
        ModelError: the processor cannot say how many tokens an image of a given size takes.
    """
    if not sizes:
        return Length(len(encode_text(processor, prompt)), 0, len(answer))
    if hasattr(processor, "full_image_sequence"):  # Gemma 3: every picture becomes the same stretch of tokens
        ids = encode_text(processor, prompt.replace(processor.boi_token, processor.full_image_sequence))
        pictures = ids.count(processor.tokenizer.image_token_id)
        return Length(len(ids) - pictures, pictures, len(answer))
    text = len(encode_text(processor, prompt))
    counts = image_tokens(processor, sizes)
    return Length(text - len(sizes), sum(counts), len(answer))


def image_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Tokens that each image of these (width, height) takes, borders included where the processor counts them."""
    if not hasattr(processor, "_get_num_multimodal_tokens"):
        raise ModelError(
            "model.image_tokens_not_counted",
            "the processor must be able to count image tokens",
            value=type(processor).__name__,
            remedy="Use a model whose processor has _get_num_multimodal_tokens (transformers >= 4.53).",
        )
    data = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in sizes])
    return [int(count) for count in data["num_image_tokens"]]


def show_supervised(processor: Any, ids: Sequence[int], labels: Sequence[int]) -> str:
    """A row as text with its supervised stretches between ⟦ and ⟧ (label -100 marks what the loss leaves out)."""
    parts: list[str] = []
    stretch: list[int] = []
    inside = False
    for token, label in [*zip(ids, labels, strict=True), (None, None)]:
        if token is None or (label != -100) != inside:
            text = processor.tokenizer.decode(stretch)
            parts.append(f"⟦{text}⟧" if inside else text)
            stretch, inside = [], not inside
        if token is not None:
            stretch.append(token)
    return "".join(parts)


_IMAGE_TOKENS = ("image_token", "boi_token", "eoi_token", "video_token", "vision_start_token", "vision_end_token")
_KNOWN_IMAGE_TOKENS = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
    "<image>",
    "<|image|>",
    "<fake_token_around_image>",
)
