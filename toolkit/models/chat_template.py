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
from pathlib import Path
from typing import Any

from PIL import Image

from toolkit import tiny
from toolkit.data.placeholders import PLACEHOLDER, split_at_images
from toolkit.data.sample import Turn
from toolkit.errors import DataError, ModelError, warn
from toolkit.models import template_trial
from toolkit.models.families import IMAGE_TOKENS, SWITCH
from toolkit.recipe import Prompt
from toolkit.scoring.reasoning import OPENING, closing_tag

Message = dict[str, Any]
_SENTINEL = "SENTINEL"
_MOST_BYTES = 1_000_000
"""Size of a chat template in a file of the recipe. Those of models have less than 30,000 bytes."""
_TIMEOUT = 120.0
"""Most seconds of a trial of a chat template, for systems that cannot limit CPU time, and very busy ones."""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The token that ends an answer in the chat template. For Gemma, it differs from the tokenizer's EOS.

    ``opened`` is the tag of the reasoning block that the generation prompt opens, such as ``<think>``. An answer then
    continues inside the block. Empty: the prompt opens none.
    """

    text: str
    id: int
    opened: str = ""

    def completed(self, completion: str) -> str:
        """Return a completion with the tag that the prompt opened, so that parsers see the whole reasoning block."""
        return self.opened + completion


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
            remedy="Use the instruction-tuned version of the model, or set prompt.chat_template to a Jinja file.",
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
        remedy="Restore the chat template of the model's authors, or remove the turns that it rejects.",
    )


def _template_place(processor: Any) -> str:
    return f"chat template of {getattr(processor.tokenizer, 'name_or_path', '') or 'the processor'}"


def set_template(processor: Any, prompt: Prompt) -> None:
    """Give the processor the chat template and the thinking switch of a recipe.

    Raises:
        ModelError: The template cannot be read, fails, or does not suit ``prompt.thinking``.
    """
    if prompt.chat_template is not None:
        processor.chat_template = read_template(prompt.chat_template)
    set_thinking(processor, prompt.thinking)


def read_template(file: Path) -> str:
    """Return the chat template in a file of the recipe.

    Raises:
        ModelError: The file is missing, not UTF-8, or too large.
    """
    try:
        if (size := file.stat().st_size) <= _MOST_BYTES:
            return file.read_text(encoding="utf-8")
        reason = f"{size:,} bytes"
    except (OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0][:200]
    raise ModelError(
        "model.chat_template_unreadable",
        f"the chat template must be a text file of at most {_MOST_BYTES:,} bytes",
        place="prompt.chat_template",
        value=reason,
        remedy="Correct the path or the file.",
    )


def set_thinking(processor: Any, thinking: bool) -> None:
    """Fix ``enable_thinking`` in the chat template, so that training, generation and exports all have this value.

    A template without this switch is unchanged.

    Raises:
        ModelError: The prompt opens a reasoning block without ``thinking``, or the template cannot reason with it.
    """
    template = processor.chat_template
    has_switch = isinstance(template, str) and SWITCH in template
    if has_switch:
        processor.chat_template = f"{{%- set {SWITCH} = {str(thinking).lower()} -%}}\n{template}"
    tag = open_block(processor)
    if tag and not thinking:
        raise ModelError(
            "model.reasoning_block_open",
            "the chat template must not open a reasoning block before an answer if prompt.thinking is false",
            place="prompt.thinking",
            value=tag,
            remedy="Set prompt.thinking = true, use the model's variant that does not reason, or set "
            "prompt.chat_template to a template that closes the block.",
        )
    if thinking and not (tag or has_switch):
        raise ModelError(
            "model.chat_template_without_thinking_switch",
            f"the chat template must read {SWITCH} if prompt.thinking is true",
            place="prompt.thinking",
            value=thinking,
            remedy="Remove prompt.thinking.",
        )


def open_block(processor: Any) -> str:
    """Return the tag of a reasoning block that the generation prompt opens and does not close, or an empty text."""
    tail = render_prompt(processor, conversation(_SENTINEL, 0)).rpartition(_SENTINEL)[2]
    opened = list(OPENING.finditer(tail))
    return opened[-1][0] if opened and closing_tag(opened[-1][0]) not in tail[opened[-1].end() :] else ""


def find_turn_end(processor: Any) -> TurnEnd:
    """Return the first special token after an answer in the template, otherwise the tokenizer's EOS.

    Raises:
        ModelError: No special token follows an answer, and there is no EOS, so generation would not stop.
    """
    messages = [
        *conversation("question", 0),
        {"role": "assistant", "content": [{"type": "text", "text": _SENTINEL}]},
    ]
    text = _render(processor, messages, generation_prompt=False)
    tail = text.rpartition(_SENTINEL)[2]
    special, tokenizer = special_ids(processor), processor.tokenizer
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token in special:
            return TurnEnd(tokenizer.convert_ids_to_tokens(token), token, open_block(processor))
    if getattr(tokenizer, "eos_token", None) is not None:  # the template of LLaVA 1.5 ends no turn
        return TurnEnd(tokenizer.eos_token, tokenizer.eos_token_id, open_block(processor))
    raise ModelError(
        "model.chat_template_without_turn_end",
        "the chat template must end an answer with a special token, because the tokenizer has no EOS",
        place=_template_place(processor),
        value=tail,
        remedy="Set prompt.chat_template to a template with an end-of-turn token, such as <end_of_turn> or <|im_end|>.",
    )


def find_image_ids(processor: Any) -> list[int]:
    """Return the tokens of images and their delimiters. A model must never generate one (EasyR1#110, trl#3847)."""
    tokenizer = processor.tokenizer
    names = {getattr(processor, name, None) for name in vars(processor) if _NAMES_IMAGE_TOKEN.search(name)}
    names |= {getattr(holder, name, None) for name in _IMAGE_TOKENS for holder in (processor, tokenizer)}
    tokens = {name for name in names if isinstance(name, str)} | IMAGE_TOKENS
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
    """Return the token ids of an answer and its end of turn, which are exactly the supervised tokens of SFT.

    If the prompt opens a reasoning block, the answer is encoded without its own opening tag.
    """
    if end.opened and answer.lstrip().lower().startswith(end.opened.lower()):
        answer = answer.lstrip()[len(end.opened) :].lstrip("\n")
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
        ModelError: The chat template does not end turns.
        DataError: The chat template changes the text of an assistant turn that is not the last one, for example by
            removing its reasoning.
    """
    answered = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answered:
        return []
    whole, special = render_prompt(processor, messages), re.compile(special_pattern(processor))
    if end.text not in whole:
        raise ModelError(
            "model.chat_template_without_turn_end",
            "the chat template must end every turn of a conversation with a special token",
            place=place,
            value=whole[-80:],
            remedy="Set prompt.chat_template to a template that ends turns, or remove the earlier assistant turns.",
        )
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
    return len(ids) - len(encode_text(processor, prompt)) + len(sizes)


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
_NAMES_IMAGE_TOKEN = re.compile(r"(?:^|_)(?:image|img|video|audio|tile|boi|eoi|boa|eoa)_(?:\w+_)?(?:token|thumbnail)$")
"""Attributes of processors with an image token, such as image_break_token and end_of_img_token."""
