"""Rendering with the model's own chat template: prompts, end of turn, image placeholders, token counts.

Training, sampling and evaluation use the same template. ``processor`` is always a ``ProcessorMixin`` of transformers.
This module does not import torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ModelError
from toolkit.models import template_trial
from toolkit.models.families import SWITCH
from toolkit.models.messages import SENTINEL, Message, conversation
from toolkit.models.template_check import check_template, template_error, template_place
from toolkit.recipe import Prompt
from toolkit.scoring.reasoning import OPENING, closing_tag

_MOST_BYTES = 1_000_000
"""Size of a chat template in a file of the recipe. Those of models have less than 30,000 bytes."""


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
        raise template_error(processor, f"{template_trial.describe(error)}, for the turns {roles}") from error
    return str(text)


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
    tail = render_prompt(processor, conversation(SENTINEL, 0)).rpartition(SENTINEL)[2]
    opened = list(OPENING.finditer(tail))
    return opened[-1][0] if opened and closing_tag(opened[-1][0]) not in tail[opened[-1].end() :] else ""


def find_turn_end(processor: Any) -> TurnEnd:
    """Return the first special token after an answer in the template, otherwise the tokenizer's EOS.

    Raises:
        ModelError: No special token follows an answer, and there is no EOS, so generation would not stop.
    """
    messages = [
        *conversation("question", 0),
        {"role": "assistant", "content": [{"type": "text", "text": SENTINEL}]},
    ]
    text = _render(processor, messages, generation_prompt=False)
    tail = text.rpartition(SENTINEL)[2]
    special, tokenizer = special_ids(processor), processor.tokenizer
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token in special:
            return TurnEnd(tokenizer.convert_ids_to_tokens(token), token, open_block(processor))
    if getattr(tokenizer, "eos_token", None) is not None:  # the template of LLaVA 1.5 ends no turn
        return TurnEnd(tokenizer.eos_token, tokenizer.eos_token_id, open_block(processor))
    raise ModelError(
        "model.chat_template_without_turn_end",
        "the chat template must end an answer with a special token, because the tokenizer has no EOS",
        place=template_place(processor),
        value=tail,
        remedy="Set prompt.chat_template to a template with an end-of-turn token, such as <end_of_turn> or <|im_end|>.",
    )


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
