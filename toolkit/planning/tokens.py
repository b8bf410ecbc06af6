"""Tokens of a recipe's rows, counted with the model's processor, or estimated where it is not here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.sample import Sample
from toolkit.errors import ModelError, ToolkitError
from toolkit.images import ImageStore
from toolkit.models.chat_template import Length
from toolkit.models.lengths import count_lengths, describe_too_long, processor_input_size
from toolkit.models.model_paths import model_source
from toolkit.models.prompts import Prompts
from toolkit.planning.architecture import Architecture, Tower
from toolkit.planning.cache import folder_facts, remembered
from toolkit.planning.memory import RowSize
from toolkit.planning.model_configs import cached_file
from toolkit.recipe import Model, Recipe

COUNTED = 400
"""At most so many rows of those there are, evenly spread, are counted for a plan; the stages look at every one."""
CHARACTERS = 4
"""Of English text a token has about so many. A rule of thumb, for models whose tokenizer is not here."""
TEMPLATE = 30
"""Tokens that a chat template puts around a question, about."""
LEAST_PIXELS = {"qwen2_vl": 56 * 56, "qwen2_5_vl": 56 * 56, "qwen3_vl": 256 * 256}
"""Pictures with fewer pixels are enlarged by these processors (their default ``min_pixels``)."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of the rows that were counted: ``lengths`` hold prompt text, pictures and reference answer of each.

    ``exact`` is false where they were estimated from characters and sizes of pictures; ``too_long`` names rows that do
    not fit into ``limit``, prompt and reference answer together. ``rows`` is 0 where there are none to look at: see
    ``fullest_row``.
    """

    rows: int
    lengths: tuple[Length, ...]
    limit: int
    exact: bool
    too_long: tuple[str, ...] = ()
    longest_sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) of the pictures of ``longest``, as the processor gets them; empty: not known.

    Those of ``fullest_row`` are not: smaller ones would leave room for more text."""
    longest_prompt_sizes: tuple[tuple[int, int], ...] = ()

    @property
    def longest(self) -> Length:
        """The row with most tokens."""
        return max(self.lengths, key=lambda one: one.total)

    @property
    def longest_prompt(self) -> Length:
        """The row with most tokens before the answer."""
        return max(self.lengths, key=lambda one: one.text + one.images)

    def spread(self, part: str) -> dict[str, int]:
        """Median, 95th percentile and maximum of ``total``, ``text``, ``images`` or ``answer``."""
        values = [getattr(one, part) for one in self.lengths]
        return {
            "median": int(np.median(values)),
            "p95": int(np.percentile(values, 95)),
            "max": int(max(values)),
        }


def find_processor(model: Model) -> Any | None:
    """The model's processor from its folder or the Hub's cache, without a request; None: it is not here."""
    source = model_source(model)
    if processor_folder(model) is None:
        return None
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(
            source, revision=model.revision, trust_remote_code=model.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError):  # files that are not whole, too
        return None


def processor_folder(model: Model) -> Path | None:
    """Where the processor's files are: the model's folder, or the Hub's cache; None: in neither."""
    folder = Path(model_source(model))
    if folder.is_dir():
        return folder
    file = cached_file(model, "tokenizer_config.json")
    return None if file is None else file.parent


def count_rows(
    recipe: Recipe, samples: Sequence[Sample], images: ImageStore, architecture: Architecture | None
) -> Tokens:
    """Tokens of at most ``COUNTED`` rows, with the reference answer.

    Raises:
        DataError: a row holds one of the model's special tokens.
        ImageError: a picture cannot be read.
        ModelError: neither a processor nor a configuration is here.
    """
    step = max(1, -(-len(samples) // COUNTED))
    prompts, chosen = Prompts.of(recipe, images), samples[::step]
    folder = processor_folder(recipe.model)

    def count() -> Tokens:
        return _count(recipe, prompts, chosen, len(samples), architecture)

    if folder is None or recipe.model.trust_remote_code:  # such code may lie anywhere
        return count()
    shown = [_shown(sample, prompts) for sample in chosen]
    side, limit = recipe.images.max_side, recipe.model.max_tokens
    return remembered(
        Tokens, [folder_facts(folder), limit, side, len(samples), shown], count, lambda found: found.exact
    )


def _count(
    recipe: Recipe, prompts: Prompts, chosen: Sequence[Sample], rows: int, architecture: Architecture | None
) -> Tokens:
    processor, limit = find_processor(recipe.model), recipe.model.max_tokens
    if processor is None:
        lengths = tuple(_estimate(sample, prompts, architecture) for sample in chosen)
        return Tokens(rows, lengths, limit, exact=False)
    counted = count_lengths(processor, prompts, chosen, limit)
    too_long = tuple(describe_too_long(counted, chosen, limit))
    return Tokens(rows, counted.lengths, limit, exact=True, too_long=too_long)


def _shown(sample: Sample, prompts: Prompts) -> list[Any]:
    """All of a row that its tokens depend on, and its name, which a row that is too long is told by."""
    sizes = [processor_input_size(ref, prompts.images) for ref in sample.images]
    return [sample.id, prompts.messages(sample), prompts.task.target(sample), sizes]


def fullest_row(recipe: Recipe, architecture: Architecture) -> Tokens:
    """In the place of rows that cannot be read: one that fills model.max_tokens, with a square picture of max_side.

    Raises:
        ToolkitError: as ``picture_tokens``.
    """
    limit, side = recipe.model.max_tokens, recipe.images.max_side
    pictures = min(picture_tokens((side, side), architecture), limit)
    answer = min(limit - pictures, recipe.evaluation.max_completion_tokens)
    return Tokens(0, (Length(limit - pictures - answer, pictures, answer),), limit, exact=False)


def row_size(length: Length, tower: Tower | None, sizes: tuple[tuple[int, int], ...] = ()) -> RowSize:
    """A row as the memory formulas see it: its patches follow from its image tokens."""
    if tower is None or not length.images:
        return RowSize(length.text, length.images, length.answer, 0, 0)
    if tower.side is not None:
        pictures = max(1, round(length.images / (tower.tokens or length.images)))
        return RowSize(length.text, length.images, length.answer, pictures, pictures * (tower.side // tower.patch) ** 2)
    patches = length.images * tower.merge**2
    return RowSize(length.text, length.images, length.answer, max(1, len(sizes)), patches, sizes)


def picture_tokens(size: tuple[int, int], architecture: Architecture) -> int:
    """Tokens of a picture of (width, height), where no processor can be asked.

    Gemma 3 makes the same number of every picture. Qwen's towers keep its size, rounded to whole tokens of
    ``patch * merge`` pixels a side (``smart_resize`` in transformers' Qwen2VLImageProcessor); their upper limit of
    pixels is above what ``images.max_side`` leaves.

    Raises:
        ToolkitError: the architecture has no vision tower that this holds for.
    """
    tower = architecture.vision
    if tower is None:
        raise ToolkitError("model.no_vision_tower", "the model must have a vision tower", value=architecture.model_type)
    if tower.tokens is not None:
        return tower.tokens
    cell = tower.patch * tower.merge
    width, height = (max(cell, round(side / cell) * cell) for side in size)
    least = LEAST_PIXELS.get(architecture.model_type, 0)
    if width * height < least:
        share = (least / (size[0] * size[1])) ** 0.5
        width, height = (-(-int(side * share) // cell) * cell for side in size)
    return (width // cell) * (height // cell)


def _estimate(sample: Sample, prompts: Prompts, architecture: Architecture | None) -> Length:
    if architecture is None:
        rule = "counting tokens needs the model's processor or its configuration, and neither is available"
        raise ModelError("model.tokens_unknown", rule)
    text = TEMPLATE + len(prompts.text(sample)) // CHARACTERS
    pictures = sum(picture_tokens(processor_input_size(ref, prompts.images), architecture) for ref in sample.images)
    return Length(text, pictures, 1 + len(prompts.task.target(sample)) // CHARACTERS)
