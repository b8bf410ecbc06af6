"""Token counts of rows, text and images, before training. Rows that are too long are reported, never truncated."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import numpy as np

from toolkit.data.placeholders import PLACEHOLDER
from toolkit.data.sample import Sample
from toolkit.errors import DataError, ImageError, list_places
from toolkit.images import ImageStore
from toolkit.images.ref import ImageRef
from toolkit.models.chat_template import encode_answer, find_turn_end, render_prompt
from toolkit.models.earlier_turns import earlier_turns
from toolkit.models.image_tokens import Length, count_tokens, image_tokens
from toolkit.models.messages import conversation
from toolkit.models.prompts import Prompts, check_no_special_tokens, prompt_texts, special_tokens
from toolkit.scoring.reasoning import closing_tag

SHOWN = 10
COUNT_ALL = 4000
"""Up to this number, every row is counted. Otherwise: rows that might be too long, and about ``SAMPLED`` others."""
SAMPLED = 1000

TOO_LONG = "[model] max_tokens"
"""The place of an error about rows that are too long."""
# Evaluations store both texts and count rows by them, so a new wording is a new reason.
PROMPT_TOO_LONG = "the prompt and the answer exceed model.max_tokens"
HAS_SPECIAL_TOKEN = "the prompt contains a special token of the model"


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Tokens per row, prompt and answer together, as the result of a training stage stores them.

    Attributes:
        rows: The number of rows.
        counted: The number of rows whose tokens were counted. The others have fewer bytes than ``limit``.
        median: The median of the counted rows.
        p95: The 95th percentile of the counted rows.
        max: The tokens of the longest row.
        images: The median of the image tokens.
        limit: The largest permitted number of tokens.
    """

    rows: int
    counted: int
    median: int
    p95: int
    max: int
    images: int
    limit: int


@dataclass(frozen=True, slots=True)
class RowLengths:
    """The token lengths of rows, and the numbers of the counted rows, the longest first."""

    tokens: TokenLengths
    longest: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CountedLengths:
    """The counted lengths with their row numbers, in order."""

    numbers: tuple[int, ...]
    lengths: tuple[Length, ...]


def check_lengths(
    processor: Any,
    prompts: Prompts,
    samples: Sequence[Sample],
    limit: int,
    answer_tokens: int | None = None,
    on_row: Callable[[int], None] = lambda done: None,
) -> RowLengths:
    """Count the rows with ``count_lengths`` and check that they fit.

    Raises:
        DataError: Rows are longer than ``limit`` tokens, contain a special token, or lack reasoning (see
            ``check_reasoning``). The error names them.
    """
    if answer_tokens is None:
        check_reasoning(find_turn_end(processor).opened, prompts, samples)
    counted = count_lengths(processor, prompts, samples, limit, answer_tokens, on_row)
    if too_long := list(describe_too_long(counted, samples, limit)):
        raise _too_long(too_long, len(samples), limit)
    return summarise(counted, len(samples), limit)


def check_reasoning(tag: str, prompts: Prompts, samples: Iterable[Sample]) -> None:
    """Check that the reference answers close the reasoning block that the prompt opens with ``tag``, if any.

    Otherwise, SFT would learn answers inside the block.

    Raises:
        DataError: An answer does not close the block. The error names the first such rows.
    """
    if not tag:
        return
    closing = closing_tag(tag)
    lacking = [sample.shown for sample in samples if closing not in prompts.task.target(sample)]
    if lacking:
        raise DataError(
            "data.reasoning_missing",
            f"the chat template opens {tag}, so every reference answer of SFT must have reasoning and {closing}, and "
            f"{len(lacking)} have not: {list_places(lacking[:SHOWN])}",
            place="prompt.thinking",
            value=True,
            remedy="Set prompt.thinking = false, or add the reasoning to the answers.",
        )


def count_lengths(
    processor: Any,
    prompts: Prompts,
    samples: Sequence[Sample],
    limit: int,
    answer_tokens: int | None = None,
    on_row: Callable[[int], None] = lambda done: None,
) -> CountedLengths:
    """Count the tokens of rows. Images are not decoded, because their headers have the size.

    Args:
        processor: The model's processor.
        prompts: The prompts of the recipe.
        samples: The rows.
        limit: The largest permitted number of tokens per row.
        answer_tokens: Tokens of a generated answer. None: the reference answer.
        on_row: Called with each row number. An exception in it ends the count.

    Raises:
        DataError: A row contains a special token of the model, or the chat template changes an earlier assistant turn.
            The error names the row.
    """
    count = _counter(processor, prompts, answer_tokens)
    every = max(1, len(samples) // SAMPLED) if len(samples) > COUNT_ALL else 1
    might_exceed = _bound(processor, prompts, answer_tokens, limit) if every > 1 else bool
    numbers, lengths = [], []
    special = special_tokens(processor)
    for name in ("system", "instruction"):
        text = getattr(prompts.prompt, name) or ""
        check_no_special_tokens([text], special, f"[prompt] {name}")
        _check_no_placeholder(text, f"[prompt] {name}")
    for number, sample in enumerate(samples):
        on_row(number)
        check_no_special_tokens(prompt_texts(sample, prompts, with_answer=answer_tokens is None), special, sample.shown)
        if number % every and not might_exceed(sample):
            continue
        numbers.append(number)
        lengths.append(count(sample))
    return CountedLengths(tuple(numbers), tuple(lengths))


def _check_no_placeholder(text: str, place: str) -> None:
    if found := PLACEHOLDER.search(text):
        raise DataError(
            "data.image_outside_user_turn",
            "an image placeholder must be in the question of a row, whose images it places",
            place=place,
            value=found[0],
            remedy="Remove it.",
        )


def summarise(counted: CountedLengths, rows: int, limit: int) -> RowLengths:
    """Return the median, 95th percentile and maximum of the counts, and the longest rows."""
    lengths = counted.lengths
    totals = [length.total for length in lengths]
    tokens = TokenLengths(
        rows=rows,
        counted=len(lengths),
        median=int(np.median(totals)),
        p95=int(np.percentile(totals, 95)),
        max=max(totals),
        images=int(np.median([length.images for length in lengths])),
        limit=limit,
    )
    return RowLengths(
        tokens=tokens,
        longest=tuple(counted.numbers[place] for place in np.argsort(totals, kind="stable")[::-1]),
    )


def describe_too_long(counted: CountedLengths, samples: Sequence[Sample], limit: int) -> Iterator[str]:
    """Yield a description of each counted row that is longer than ``limit``: its row and tokens."""
    for number, length in zip(counted.numbers, counted.lengths, strict=True):
        if length.total > limit:
            yield f"{samples[number].shown}: {length.total} ({length.images} image tokens)"


def longest_first(processor: Any, prompts: Prompts, samples: Sequence[Sample]) -> list[int]:
    """Return the numbers of the samples, those with the most tokens of prompt and reference answer first.

    Batches of samples in this order have little padding, and the first one needs the most memory.
    """
    count, end = _counter(processor, prompts, 0), find_turn_end(processor)
    tokens = [
        count(sample).total + len(encode_answer(processor, prompts.task.target(sample), end)) for sample in samples
    ]
    return sorted(range(len(tokens)), key=lambda number: -tokens[number])


def prompt_checker(processor: Any, prompts: Prompts, limit: int, answer_tokens: int) -> Callable[[Sample], str | None]:
    """Return a function from a sample to ``PROMPT_TOO_LONG``, ``HAS_SPECIAL_TOKEN`` or None (the prompt can be used).

    It serves prompts that contain earlier completions of the model, whose length is unknown before the evaluation.
    """
    count, special = _counter(processor, prompts, answer_tokens), special_tokens(processor)

    def problem(sample: Sample) -> str | None:
        if special.search("\n".join(prompt_texts(sample, prompts, with_answer=False))):
            return HAS_SPECIAL_TOKEN
        return PROMPT_TOO_LONG if count(sample).total > limit else None

    return problem


def _counter(processor: Any, prompts: Prompts, answer_tokens: int | None) -> Callable[[Sample], Length]:
    end = find_turn_end(processor)

    def count(sample: Sample) -> Length:
        messages = prompts.messages(sample)
        prompt = render_prompt(processor, messages)
        sizes = [processor_input_size(ref, prompts.images) for ref in sample.images]
        if answer_tokens is not None:
            return count_tokens(processor, prompt, sizes, range(answer_tokens))
        length = count_tokens(processor, prompt, sizes, encode_answer(processor, prompts.task.target(sample), end))
        turns = earlier_turns(processor, messages, end, sample.shown)
        return replace(length, earlier=sum(len(encode_answer(processor, turn.answer, end)) for turn in turns))

    return count


def _bound(processor: Any, prompts: Prompts, answer_tokens: int | None, limit: int) -> Callable[[Sample], bool]:
    """Return a function that says from its bytes whether a row might be too long.

    A token has at least one byte, so the function never misses a row that is too long.
    """
    policy = prompts.images.policy
    side = min(policy.max_side, isqrt(policy.max_pixels))
    empty = {n: len(render_prompt(processor, conversation("", n, prompts.prompt.system)).encode()) for n in (0, 1)}
    # The largest number of tokens of an image, its placeholder's bytes, and a margin for the text around it. Long
    # shapes are included, because processors with tiles may need more of them for a strip than for a square.
    shapes = [(side, max(1, side // part)) for part in (1, 2, 3, 4, 6, 9, 12)]
    per_image = max(image_tokens(processor, [*shapes, *(shape[::-1] for shape in shapes)])) + (empty[1] - empty[0]) + 16

    def rendered(sample: Sample) -> str:
        return render_prompt(processor, prompts.messages(sample))

    def might_exceed(sample: Sample) -> bool:
        answer = len(prompts.task.target(sample).encode()) + 1 if answer_tokens is None else answer_tokens
        text = len((prompts.text(sample) if prompts.task.turns is None else rendered(sample)).encode())
        return empty[0] + text + answer + per_image * len(sample.images) > limit

    return might_exceed


def processor_input_size(ref: ImageRef, images: ImageStore) -> tuple[int, int]:
    """Return (width, height) of the image that the model's processor gets, which may be a placeholder.

    Raises:
        ImageError: The image is unreadable, and the recipe does not request placeholders.
    """
    try:
        return images.reduced_size(ref)
    except ImageError:
        if images.unreadable != "placeholder":
            raise
        return images.get(ref).size


def _too_long(rows: list[str], count: int, limit: int) -> DataError:
    more = f", and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return DataError(
        "data.row_too_long",
        f"every row must fit into {limit} tokens, but {len(rows)} of {count} do not: {list_places(rows[:SHOWN])}{more}",
        place=TOO_LONG,
        value=limit,
        remedy="Raise model.max_tokens, lower images.max_side, or shorten the prompt. Rows are never cut.",
    )
