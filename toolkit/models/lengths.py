"""Tokens of every row, text and pictures, before training: a row that is too long is found, never cut."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from toolkit.data.sample import Sample
from toolkit.errors import DataError, ImageError
from toolkit.images import ImageStore, reduced_size
from toolkit.images.ref import ImageRef
from toolkit.models.chat_template import (
    Length,
    conversation,
    count_tokens,
    encode_answer,
    find_turn_end,
    image_tokens,
    render_prompt,
    special_ids,
)
from toolkit.models.prompts import Prompts

SHOWN = 10
COUNT_ALL = 4000
"""Up to so many rows each is counted. Of more, those that might be too long are, and as many others as ``SAMPLED``."""
SAMPLED = 1000

TOO_LONG = "[model] max_tokens"
"""The place that an error about rows that are too long names."""
PROMPT_TOO_LONG = "the prompt with its memory leaves no room for an answer in model.max_tokens"
HAS_SPECIAL_TOKEN = "the question or its memory holds one of the model's special tokens"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens a row, prompt and answer together, over the ``counted`` rows; ``images`` is the median of picture tokens.

    Rows that were not counted have fewer bytes than ``limit`` has tokens, and so cannot be longer.
    """

    rows: int
    counted: int
    median: int
    p95: int
    max: int
    images: int
    limit: int
    longest: tuple[int, ...] = field(default=(), repr=False)
    """Numbers of the counted rows, the longest first."""

    def to_dict(self) -> dict[str, int]:
        """For a stage's record."""
        return {name: value for name, value in asdict(self).items() if name != "longest"}


@dataclass(frozen=True, slots=True)
class CountedLengths:
    """The lengths that were counted: each with its row's number, in their order."""

    numbers: tuple[int, ...]
    lengths: tuple[Length, ...]


def check_lengths(
    processor: Any,
    prompts: Prompts,
    samples: Sequence[Sample],
    limit: int,
    answer_tokens: int | None = None,
    on_row: Callable[[int], None] = lambda done: None,
) -> Lengths:
    """Count the rows, as ``count_lengths`` does, and see that they fit.

    Raises:
        DataError: rows are longer than ``limit``, or hold a special token of the model; the message names them.
    """
    counted = count_lengths(processor, prompts, samples, limit, answer_tokens, on_row)
    if too_long := list(describe_too_long(counted, samples, limit)):
        raise _too_long(too_long, len(samples), limit)
    return summarise(counted, len(samples), limit)


def count_lengths(
    processor: Any,
    prompts: Prompts,
    samples: Sequence[Sample],
    limit: int,
    answer_tokens: int | None = None,
    on_row: Callable[[int], None] = lambda done: None,
) -> CountedLengths:
    """Count the rows; the answer is the reference, or ``answer_tokens`` where the model writes it.

    ``tell`` is called with the number of rows that were looked at; what it raises ends the count.

    No picture is decoded: its size stands in its header.

    Raises:
        DataError: a row holds a special token of the model; the message names it.
    """
    count = _counter(processor, prompts, answer_tokens)
    might_exceed = _bound(processor, prompts, answer_tokens, limit)
    every = max(1, len(samples) // SAMPLED) if len(samples) > COUNT_ALL else 1
    numbers, lengths = [], []
    special = special_tokens(processor)
    check_no_special_tokens([prompts.prompt.system or "", prompts.prompt.instruction or ""], special, "[prompt]")
    for number, sample in enumerate(samples):
        on_row(number)
        check_no_special_tokens(prompt_texts(sample, prompts, with_answer=answer_tokens is None), special, sample.id)
        if number % every and not might_exceed(sample):
            continue
        numbers.append(number)
        lengths.append(count(sample))
    return CountedLengths(tuple(numbers), tuple(lengths))


def summarise(counted: CountedLengths, rows: int, limit: int) -> Lengths:
    """Median, 95th percentile and maximum of what was counted, and which rows are the longest."""
    lengths = counted.lengths
    totals = [length.total for length in lengths]
    return Lengths(
        rows=rows,
        counted=len(lengths),
        median=int(np.median(totals)),
        p95=int(np.percentile(totals, 95)),
        max=max(totals),
        images=int(np.median([length.images for length in lengths])),
        limit=limit,
        longest=tuple(counted.numbers[place] for place in np.argsort(totals, kind="stable")[::-1]),
    )


def describe_too_long(counted: CountedLengths, samples: Sequence[Sample], limit: int) -> Iterator[str]:
    """Each counted row that is longer than ``limit``, by its id, with its tokens."""
    for number, length in zip(counted.numbers, counted.lengths, strict=True):
        if length.total > limit:
            yield f"{samples[number].id}: {length.total} ({length.images} of them image tokens)"


def prompt_checker(processor: Any, prompts: Prompts, limit: int, answer_tokens: int) -> Callable[[Sample], str | None]:
    """Return a function from a sample to ``PROMPT_TOO_LONG``, ``HAS_SPECIAL_TOKEN`` or None (the prompt can be used).

    It serves prompts that contain earlier completions of the model, whose length is unknown before the evaluation.
    """
    count, special = _counter(processor, prompts, answer_tokens), special_tokens(processor)

    def unfit(sample: Sample) -> str | None:
        if special.search("\n".join(prompt_texts(sample, prompts, with_answer=False))):
            return HAS_SPECIAL_TOKEN
        return PROMPT_TOO_LONG if count(sample).total > limit else None

    return unfit


def special_tokens(processor: Any) -> re.Pattern[str]:
    """Finds the model's special tokens in a text."""
    names = [processor.tokenizer.convert_ids_to_tokens(token) for token in special_ids(processor)]
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))


def prompt_texts(sample: Sample, prompts: Prompts, *, with_answer: bool) -> list[str]:
    """What of a row the model is shown; with the reference answer where SFT trains on it."""
    texts = [prompts.task.question(sample), *(str(sample.fields.get(name, "")) for name in prompts.prompt.context)]
    return [*texts, prompts.task.target(sample)] if with_answer else texts


def check_no_special_tokens(texts: Sequence[str], special: re.Pattern[str], place: str) -> None:
    """Text that reads as a turn or a picture would be taken for one.

    Raises:
        DataError: one of the texts holds a special token.
    """
    if found := special.search("\n".join(texts)):
        raise DataError(
            "data.special_token_in_text",
            "text must not contain special tokens of the model, which would read as a turn or an image",
            place=place,
            value=found[0],
            remedy="Remove the token.",
        )


def _counter(processor: Any, prompts: Prompts, answer_tokens: int | None) -> Callable[[Sample], Length]:
    end = find_turn_end(processor)

    def count(sample: Sample) -> Length:
        prompt = render_prompt(processor, prompts.messages(sample))
        if answer_tokens is None:
            answer: Sequence[int] = encode_answer(processor, prompts.task.target(sample), end)
        else:
            answer = range(answer_tokens)
        return count_tokens(
            processor, prompt, [processor_input_size(ref, prompts.images) for ref in sample.images], answer
        )

    return count


def _bound(processor: Any, prompts: Prompts, answer_tokens: int | None, limit: int) -> Callable[[Sample], bool]:
    """Whether a row might be too long, from its bytes: a token stands for at least one, so it errs to yes."""
    side = prompts.images.policy.max_side
    empty = {n: len(render_prompt(processor, conversation("", n, prompts.prompt.system)).encode()) for n in (0, 1)}
    # The picture that takes most, square or long (processors that cut tiles give a strip more of them than a square),
    # the bytes of its placeholder, and a margin for what stands around it.
    shapes = [(side, max(1, side // part)) for part in (1, 2, 3, 4, 6, 9, 12)]
    picture = max(image_tokens(processor, [*shapes, *(shape[::-1] for shape in shapes)])) + (empty[1] - empty[0]) + 16

    def might_exceed(sample: Sample) -> bool:
        answer = len(prompts.task.target(sample).encode()) + 1 if answer_tokens is None else answer_tokens
        text = len(prompts.text(sample).encode())
        return empty[0] + text + answer + picture * len(sample.images) > limit

    return might_exceed


def processor_input_size(ref: ImageRef, images: ImageStore) -> tuple[int, int]:
    """(width, height) of the picture that the model's processor gets; that of the placeholder where one stands for it.

    Raises:
        ImageError: the picture cannot be read, and the recipe does not ask for placeholders.
    """
    try:
        return reduced_size(ref, images.policy)
    except ImageError:
        if images.unreadable != "placeholder":
            raise
        return images.get(ref).size


def _too_long(rows: list[str], count: int, limit: int) -> DataError:
    more = f", and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return DataError(
        "data.row_too_long",
        f"every row must fit into {limit} tokens, but {len(rows)} of {count} do not: {'; '.join(rows[:SHOWN])}{more}",
        place=TOO_LONG,
        value=limit,
        remedy="Raise model.max_tokens, lower images.max_side, or shorten the prompt. Rows are never cut.",
    )
