"""Batches of rows: encoded prompts, and SFT batches with labels on assistant turns and their ends of turn only."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from toolkit.errors import DataError
from toolkit.models.backend import Policy, Row, RowSource
from toolkit.models.chat_template import adds_bos, encode_answer, render_prompt
from toolkit.models.earlier_turns import EarlierTurn, earlier_turns
from toolkit.models.pixel_layout import LABELS, TOKEN_TYPES, answer_type, match_dtype

IGNORED = -100


@dataclass(frozen=True, slots=True)
class SftCollator:
    """Collates row numbers into a batch. Rows are padded on the right and never truncated."""

    policy: Policy
    rows: RowSource

    def __call__(self, examples: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Return input_ids, attention_mask and labels of shape (batch, longest row), and the pixels.

        Raises:
            DataError: A row has no answer.
        """
        return collate(self.policy, [self.rows(example["index"]) for example in examples])


def collate(policy: Policy, rows: Sequence[Row], *, earlier: bool = True) -> dict[str, Any]:
    """Return a batch of opened rows. See ``SftCollator``.

    Args:
        policy: The model and its processor.
        rows: The rows.
        earlier: Whether the earlier assistant turns of a conversation are supervised too.

    Raises:
        DataError: A row has no answer, or the chat template changes an earlier assistant turn.
    """
    prompts = encode_prompts(policy, rows, "right")
    # The processor pads prompts to the longest one. Padding is removed before the answer is appended, because tokens
    # between prompt and answer would change the positions of the answer.
    masks = [mask.bool() for mask in prompts["attention_mask"]]
    heads = [ids[mask] for ids, mask in zip(prompts["input_ids"], masks, strict=True)]
    spans = [_spans(policy, row, head, earlier) for row, head in zip(rows, heads, strict=True)]
    pad = policy.processor.tokenizer.pad_token_id
    batch = {name: value for name, value in prompts.items() if name not in (*TOKEN_TYPES, "input_ids")}
    batch["input_ids"] = _pad(_join(heads, spans, lambda span: span.tokens), pad)
    batch["attention_mask"] = _pad(
        _join(map(torch.ones_like, heads), spans, lambda span: torch.ones_like(span.tokens)), 0
    )
    # Labels are built from the token ids of the answers: the loss covers the assistant turns and their end of turn,
    # never other turns, the template, image tokens or padding.
    ignored = [torch.full_like(head, IGNORED) for head in heads]
    batch["labels"] = _pad(_join(ignored, spans, lambda span: span.labels), IGNORED)
    for name in TOKEN_TYPES:
        if name in prompts:
            types = [kind[mask] for kind, mask in zip(prompts[name], masks, strict=True)]
            answered = answer_type(prompts[name], sum(len(row.images) for row in rows))
            batch[name] = _pad(_join(types, spans, functools.partial(_fill, answered)), 0)
    return batch


def _fill(value: int, span: "_Span") -> torch.Tensor:
    return torch.full_like(span.tokens, value)


class _Span(NamedTuple):
    """Tokens ``start`` to ``stop`` of a prompt, and what replaces them in training. Labels have their shape."""

    start: int
    stop: int
    tokens: torch.Tensor
    labels: torch.Tensor


def _spans(policy: Policy, row: Row, head: torch.Tensor, earlier: bool) -> list[_Span]:
    """Return the assistant turns of a row in order, the answer last.

    Each turn is tokenized like an answer, apart from the template around it. So a model learns the same tokens in every
    turn, whether or not its tokenizer would merge an answer with the text before it.
    """
    answer = torch.tensor(_answer_ids(policy, row))
    spans = [
        _earlier_span(policy, turn, head) for turn in earlier_turns(policy.processor, row.messages, policy.turn_end)
    ]
    return [*(spans if earlier else ()), _Span(len(head), len(head), answer, answer)]


def _earlier_span(policy: Policy, turn: EarlierTurn, head: torch.Tensor) -> _Span:
    tokenizer = policy.processor.tokenizer
    stop = int((head == policy.turn_end.id).nonzero()[turn.end]) + 1
    start = 0
    if turn.opening:
        opening = tokenizer.convert_tokens_to_ids(turn.opening)
        start = int((head[: stop - 1] == opening).nonzero()[-1]) + 1
    header = torch.tensor(tokenizer(turn.header, add_special_tokens=False)["input_ids"], dtype=torch.long)
    answer = torch.tensor(encode_answer(policy.processor, turn.answer, policy.turn_end))
    labels = torch.cat([torch.full_like(header, IGNORED), answer])
    return _Span(start, stop, torch.cat([header, answer]), labels)


def _join(
    heads: Iterable[torch.Tensor], spans: Sequence[Sequence[_Span]], part: Callable[[_Span], torch.Tensor]
) -> list[torch.Tensor]:
    """Return each head with its spans replaced by a part of them."""
    return [_replace(head, own, part) for head, own in zip(heads, spans, strict=True)]


def _replace(head: torch.Tensor, spans: Sequence[_Span], part: Callable[[_Span], torch.Tensor]) -> torch.Tensor:
    pieces, end = [], 0
    for span in spans:
        pieces += [head[end : span.start], part(span)]
        end = span.stop
    return torch.cat([*pieces, head[end:]])


def encode_prompts(policy: Policy, rows: Sequence[Row], padding_side: Literal["left", "right"]) -> Any:
    """Return the tokens of the prompts, padded to the longest one, and the pixels of their images."""
    processor = policy.processor
    texts = [render_prompt(processor, row.messages) for row in rows]
    encoded = processor(
        text=texts,
        images=[row.images for row in rows] if any(row.images for row in rows) else None,
        padding=True,
        padding_side=padding_side,
        return_tensors="pt",
        add_special_tokens=adds_bos(processor, texts[0]),
    )
    encoded.pop(LABELS, None)
    if policy.model is not None:
        encoded.update(match_dtype(encoded, policy.model.dtype))
    return encoded


def _answer_ids(policy: Policy, row: Row) -> list[int]:
    if not row.answer:
        raise DataError(
            "data.answer_missing", "a training row must have an answer", place=str(row.messages)[:200], value=row.answer
        )
    return encode_answer(policy.processor, row.answer, policy.turn_end)


def _pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)
