"""Batches of rows: encoded prompts, and SFT batches with labels on the answer and its end of turn only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from toolkit.errors import DataError
from toolkit.models.backend import Policy, Row, RowSource
from toolkit.models.chat_template import adds_bos, encode_answer, render_prompt

IGNORED = -100
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


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


def collate(policy: Policy, rows: Sequence[Row]) -> dict[str, Any]:
    """Return a batch of opened rows. See ``SftCollator``."""
    prompts = encode_prompts(policy, rows, "right")
    answers = [torch.tensor(_answer_ids(policy, row)) for row in rows]
    # The processor pads prompts to the longest one. Padding is removed before the answer is appended, because tokens
    # between prompt and answer would change the positions of the answer.
    heads = [ids[mask.bool()] for ids, mask in zip(prompts["input_ids"], prompts["attention_mask"], strict=True)]
    pad = policy.processor.tokenizer.pad_token_id
    pairs = list(zip(heads, answers, strict=True))
    batch = {name: value for name, value in prompts.items() if name not in (*_TOKEN_TYPES, "input_ids")}
    batch["input_ids"] = _pad([torch.cat(pair) for pair in pairs], pad)
    batch["attention_mask"] = _pad([torch.ones(len(head) + len(answer)) for head, answer in pairs], 0).long()
    # Labels are built from the token ids of the answer, not found by searching for markers in the rendered text: the
    # loss covers the answer and its end of turn, never the prompt, image tokens or padding.
    batch["labels"] = _pad([torch.cat([torch.full_like(head, IGNORED), answer]) for head, answer in pairs], IGNORED)
    for name in _TOKEN_TYPES:
        if name in prompts:
            types = [kind[mask.bool()] for kind, mask in zip(prompts[name], prompts["attention_mask"], strict=True)]
            batch[name] = _pad(
                [torch.cat([kind, torch.zeros_like(answer)]) for kind, answer in zip(types, answers, strict=True)], 0
            )
    return batch


def encode_prompts(policy: Policy, rows: Sequence[Row], padding_side: Literal["left", "right"]) -> Any:
    """Return the tokens of the prompts, padded to the longest one, and the pixels of their images."""
    processor = policy.processor
    texts = [render_prompt(processor, row.messages) for row in rows]
    return processor(
        text=texts,
        images=[row.images for row in rows] if any(row.images for row in rows) else None,
        padding=True,
        padding_side=padding_side,
        return_tensors="pt",
        add_special_tokens=adds_bos(processor, texts[0]),
    )


def _answer_ids(policy: Policy, row: Row) -> list[int]:
    if not row.answer:
        raise DataError(
            "data.answer_missing", "a training row must have an answer", place=str(row.messages)[:200], value=row.answer
        )
    return encode_answer(policy.processor, row.answer, policy.turn_end)


def _pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)
