"""Tokens of every row, text and pictures, counted before training: a row that is too long is found, never cut."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from toolkit.chat import count_tokens, encode_answer, find_turn_end, render_prompt
from toolkit.errors import DataError, ImageError
from toolkit.images import ImageStore, reduced_size
from toolkit.sample import ImageRef, Sample
from toolkit.stages.prompts import Prompts

SHOWN = 10


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens a row, prompt and answer together; ``images`` is the median of the picture tokens alone."""

    rows: int
    median: int
    p95: int
    max: int
    images: int
    limit: int

    def to_dict(self) -> dict[str, int]:
        """For a stage's record."""
        return asdict(self)


def check_lengths(
    processor: Any,
    prompts: Prompts,
    samples: Sequence[Sample],
    limit: int,
    answer_tokens: int | None = None,
) -> Lengths:
    """Count every row; the answer is the reference, or ``answer_tokens`` where the model writes it.

    No picture is decoded: its size stands in its header.

    Raises:
        DataError: rows are longer than ``limit``; the message names them.
    """
    end = find_turn_end(processor)
    totals, pictures, too_long = [], [], []
    for sample in samples:
        prompt = render_prompt(processor, prompts.messages(sample))
        if answer_tokens is None:
            answer: Sequence[int] = encode_answer(processor, prompts.task.target(sample), end)
        else:
            answer = range(answer_tokens)
        length = count_tokens(processor, prompt, [_size(ref, prompts.images) for ref in sample.images], answer)
        totals.append(length.total)
        pictures.append(length.images)
        if length.total > limit:
            too_long.append(f"{sample.id}: {length.total} ({length.images} of them image tokens)")
    if too_long:
        raise _too_long(too_long, len(totals), limit)
    return Lengths(
        rows=len(totals),
        median=int(np.median(totals)),
        p95=int(np.percentile(totals, 95)),
        max=max(totals),
        images=int(np.median(pictures)),
        limit=limit,
    )


def _size(ref: ImageRef, images: ImageStore) -> tuple[int, int]:
    try:
        return reduced_size(ref, images.policy)
    except ImageError:
        if images.unreadable != "placeholder":
            raise
        return images.get(ref).size


def _too_long(rows: list[str], count: int, limit: int) -> DataError:
    more = f", and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return DataError(
        f"every row must fit into model.max_tokens = {limit} tokens; {len(rows)} of {count} do not: "
        + "; ".join(rows[:SHOWN])
        + more,
        place="[model] max_tokens",
        remedy="Raise model.max_tokens, lower images.max_side, or shorten the prompt. Nothing is cut.",
    )
