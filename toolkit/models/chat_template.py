"""Rendering with the model's own chat template: prompts, end of turn, image placeholders, token counts.

Training, sampling and evaluation use the same template. ``processor`` is always a ``ProcessorMixin`` of transformers.
This module does not import torch.
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from toolkit import tiny
from toolkit.data.placeholders import PLACEHOLDER, split_at_images
from toolkit.data.sample import Turn
from toolkit.errors import DataError, ModelError, warn
from toolkit.models import template_trial
from toolkit.scoring.reasoning import OPENING, closing_tag

Message = dict[str, Any]
_SENTINEL = "SENTINEL"
_SWITCH = "enable_thinking"
_TIMEOUT = 120.0
"""Most seconds of a trial of a chat template, for systems that cannot limit CPU time, and very busy ones."""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The token that ends an answer in the chat template. For Gemma, it differs from the tokenizer's EOS."""

    text: str
    id: int


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


def conversation(question: str, images: int, system: str | None = None) -> list[Message]:
    """Return a user turn with ``images`` image placeholders and the question, after an optional system turn."""
    return messages_of([*([Turn("system", system)] if system else []), Turn("user", question)], images)


def messages_of(turns: Sequence[Turn], images: int) -> list[Message]:
    """Return the turns as messages, with an image at each placeholder of a user turn.

    Without placeholders, the images are the first parts of the first user turn.
    """
    messages: list[Message] = []
    placed = any(PLACEHOLDER.search(turn.text) for turn in turns if turn.role == "user")
    waiting = 0 if placed else images
    for turn in turns:
        if turn.role == "user" and placed:
            parts = list(split_at_images(turn.text))
            content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
        else:
            content = [{"type": "text", "text": turn.text}]
        if turn.role == "user":
            content, waiting = [*({"type": "image"} for _ in range(waiting)), *content], 0
        messages.append({"role": turn.role, "content": content})
    return messages


def render_prompt(processor: Any, messages: Sequence[Message]) -> str:
    """Return the prompt up to the beginning of the answer, with one placeholder per image.

    Raises:
        ModelError: The chat template is missing, fails, or exceeds the limits of ``template_trial``.
    """
    return _render(processor, messages, generation_prompt=True)


def _render(processor: Any, messages: Sequence[Message], *, generation_prompt: bool) -> str:
    if hasattr(processor, "chat_template"):
        check_template(processor)
    try:
        text = processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation_prompt)
    except template_trial.FAILURES as error:
        roles = ", ".join(message["role"] for message in messages)
        raise _template_error(processor, f"{template_trial.describe(error)}, for the turns {roles}") from error
    return str(text)


def check_template(processor: Any) -> None:
    """Render a short conversation with the chat template under limits, in another process, once for each template.

    Raises:
        ModelError: The chat template is missing, fails, or exceeds the limits of ``template_trial``.
    """
    template = processor.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str) or not template.strip():
        raise ModelError(
            "model.chat_template_missing",
            "the model must have a chat template",
            place=_template_place(processor),
            value=template,
            remedy="Use the instruction-tuned version of the model, or add its chat_template.jinja to the folder.",
        )
    if template == _own_template():
        return
    reason = _trial(template, json.dumps(processor.tokenizer.special_tokens_map, default=str))
    if reason:
        raise _template_error(processor, reason)


@cache
def _own_template() -> str:
    """Return the template of the tiny model, which ships with this package and needs no trial."""
    return (tiny.FOLDER / "chat_template.jinja").read_text(encoding="utf-8")


@lru_cache(maxsize=32)
def _trial(template: str, variables: str) -> str:
    """Return why a chat template fails for a short conversation, or an empty text."""
    answer = {"role": "assistant", "content": [{"type": "text", "text": _SENTINEL}]}
    calls = [
        {"messages": conversation("question", 1), "add_generation_prompt": True},
        {"messages": [*conversation("question", 0), answer], "add_generation_prompt": False},
    ]
    job = json.dumps({"template": template, "variables": json.loads(variables), "calls": calls})
    # With -P, files of this package and of the working directory cannot shadow a library.
    command = [sys.executable, "-P", template_trial.__file__]
    try:
        done = subprocess.run(command, input=job, capture_output=True, encoding="utf-8", timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return f"no end within {_TIMEOUT:.0f} s for a short prompt"
    started, _, reason = done.stdout.partition("\n")
    if started != template_trial.READY:
        rule = "the chat template was not tried under limits, because the process that renders it did not start"
        warn("model.chat_template_not_tried", rule, value=done.stderr.strip()[-200:])
        return ""
    if done.returncode in (-getattr(signal, "SIGXCPU", 0), -getattr(signal, "SIGKILL", 0)) and done.returncode:
        return f"no end within {template_trial.SECONDS} s of CPU time for a short prompt"
    return reason if done.returncode == 0 else f"the renderer ended with code {done.returncode} for a short prompt"


def _template_error(processor: Any, reason: str) -> ModelError:
    return ModelError(
        "model.chat_template_fails",
        "the chat template must render the conversation",
        place=_template_place(processor),
        value=reason,
        remedy="Restore the chat_template.jinja of the model's authors, or remove the turns that it rejects.",
    )


def _template_place(processor: Any) -> str:
    return f"chat template of {getattr(processor.tokenizer, 'name_or_path', '') or 'the processor'}"


def set_thinking(processor: Any, thinking: bool | None) -> None:
    """Fix ``enable_thinking`` in the chat template, so that training, generation and exports all have this value.

    Raises:
        ModelError: The template has no such switch.
    """
    if thinking is None:
        return
    template = processor.chat_template
    if not isinstance(template, str) or _SWITCH not in template:
        raise ModelError(
            "model.chat_template_without_thinking_switch",
            f"the chat template must read {_SWITCH} if prompt.thinking is set",
            place="prompt.thinking",
            value=thinking,
            remedy="Remove prompt.thinking.",
        )
    processor.chat_template = f"{{%- set {_SWITCH} = {str(thinking).lower()} -%}}\n{template}"


def open_block(processor: Any) -> str:
    """Return the tag of a reasoning block that the generation prompt opens and does not close, or an empty text."""
    tail = render_prompt(processor, conversation(_SENTINEL, 0)).rpartition(_SENTINEL)[2]
    opened = list(OPENING.finditer(tail))
    return opened[-1][0] if opened and closing_tag(opened[-1][0]) not in tail[opened[-1].end() :] else ""


def find_turn_end(processor: Any) -> TurnEnd:
    """Return the first special token after an answer in the template.

    Raises:
        ModelError: No special token follows an answer, so generation would not stop.
    """
    messages = [
        *conversation("question", 0),
        {"role": "assistant", "content": [{"type": "text", "text": _SENTINEL}]},
    ]
    text = _render(processor, messages, generation_prompt=False)
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
    """Return the tokens of images and their delimiters. A model must never generate one (EasyR1#110, trl#3847)."""
    tokenizer = processor.tokenizer
    names = {getattr(processor, name, None) for name in _IMAGE_TOKENS} | {
        getattr(tokenizer, name, None) for name in _IMAGE_TOKENS
    }
    tokens = {name for name in names if isinstance(name, str)} | set(_KNOWN_IMAGE_TOKENS)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary[token] for token in tokens if token in vocabulary)


def special_ids(processor: Any) -> set[int]:
    """Return the special tokens: turns, images, padding."""
    tokenizer = processor.tokenizer
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def adds_bos(processor: Any, text: str) -> bool:
    """Return whether tokenization must add special tokens. If the template has a BOS, another one would follow."""
    bos = processor.tokenizer.bos_token
    return not (bos and text.startswith(bos))


def encode_text(processor: Any, text: str) -> list[int]:
    """Return the token ids of a rendered text. Image placeholders are not expanded."""
    return list(processor.tokenizer(text, add_special_tokens=adds_bos(processor, text))["input_ids"])


def encode_answer(processor: Any, answer: str, end: TurnEnd) -> list[int]:
    """Return the token ids of an answer and its end of turn, which are exactly the supervised tokens of SFT."""
    return [*processor.tokenizer(answer, add_special_tokens=False)["input_ids"], end.id]


@dataclass(frozen=True, slots=True)
class EarlierTurn:
    """An assistant turn inside a rendered prompt.

    Attributes:
        end: number of end-of-turn tokens in the prompt before that of this turn.
        opening: the last special token before the turn. Empty: there is none.
        header: the text of the template between ``opening`` and an answer, when it is generated.
        shown: the text of the template between ``opening`` and this turn in the prompt. Most templates have the same.
        answer: the text of the turn.
    """

    end: int
    opening: str
    header: str
    shown: str
    answer: str


def earlier_turns(processor: Any, messages: Sequence[Message], end: TurnEnd, place: str = "") -> list[EarlierTurn]:
    """Return the assistant turns of a prompt, in order.

    Args:
        processor: The model's processor.
        messages: The prompt.
        end: The end of turn.
        place: The row, for an error.

    Raises:
        DataError: The chat template changes the text of an assistant turn that is not the last one, for example by
            removing its reasoning.
    """
    answered = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answered:
        return []
    whole, special = render_prompt(processor, messages), re.compile(special_pattern(processor))
    turns = []
    for number in answered:
        answer = str(messages[number]["content"][0]["text"])
        before = render_prompt(processor, messages[:number])
        # A generation prompt may open or skip a reasoning block, which earlier turns do not have.
        common = next(
            (place for place, pair in enumerate(zip(before, whole, strict=False)) if pair[0] != pair[1]), len(before)
        )
        found = list(special.finditer(before[:common]))
        opening, start = (found[-1][0], found[-1].end()) if found else ("", 0)
        text = whole[start:].partition(end.text)[0].rstrip()
        if not text.endswith(answer.strip()):
            raise _changed_turn(place, answer, text)
        shown = text.removesuffix(answer.strip())
        turns.append(EarlierTurn(whole[:start].count(end.text), opening, before[start:], shown, answer))
    return turns


def turn_headers(processor: Any, end: TurnEnd) -> tuple[str, str]:
    """Return the text of the template before an earlier assistant turn, and before an answer that is generated."""
    turns = (Turn("user", "question"), Turn("assistant", _SENTINEL), Turn("user", "question"))
    turn = earlier_turns(processor, messages_of(turns, 0), end)[0]
    return turn.shown, turn.header


def _changed_turn(place: str, answer: str, shown: str) -> DataError:
    return DataError(
        "data.turn_changed_by_template",
        "the chat template must keep the text of the assistant turns of a conversation",
        place=place,
        value=f"a turn of {len(answer):,} characters became {len(shown):,}",
        remedy="Remove reasoning from earlier assistant turns, or use a model whose chat template keeps it.",
    )


def special_pattern(processor: Any) -> str:
    """Return a regular expression that matches the model's special tokens."""
    names = [processor.tokenizer.convert_ids_to_tokens(token) for token in special_ids(processor)]
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def count_tokens(processor: Any, prompt: str, sizes: Sequence[tuple[int, int]], answer: Sequence[int]) -> Length:
    """Return the token counts of a row without opening an image.

    Args:
        processor: The model's processor.
        prompt: The rendered prompt.
        sizes: (width, height) of each image in pixels.
        answer: Token ids of the answer.

    Raises:
        ModelError: The processor cannot compute the number of tokens of an image from its size.
    """
    if not sizes:
        return Length(len(encode_text(processor, prompt)), 0, len(answer))
    if hasattr(processor, "full_image_sequence"):  # Gemma 3: every image has the same sequence of tokens
        ids = encode_text(processor, prompt.replace(processor.boi_token, processor.full_image_sequence))
        images = ids.count(processor.tokenizer.image_token_id)
        return Length(len(ids) - images, images, len(answer))
    text = len(encode_text(processor, prompt))
    counts = image_tokens(processor, sizes)
    return Length(text - len(sizes), sum(counts), len(answer))


def image_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Return the number of tokens per image of these (width, height), with delimiters if the processor counts them."""
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
    """Return a row as text with its supervised parts between ⟦ and ⟧. Tokens with label -100 are not supervised."""
    parts: list[str] = []
    span: list[int] = []
    inside = False
    for token, label in [*zip(ids, labels, strict=True), (None, None)]:
        if token is None or (label != -100) != inside:
            text = processor.tokenizer.decode(span)
            parts.append(f"⟦{text}⟧" if inside else text)
            span, inside = [], not inside
        if token is not None:
            span.append(token)
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
