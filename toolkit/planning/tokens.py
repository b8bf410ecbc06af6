"""Tokens of a recipe's rows, counted with the model's processor, or estimated without one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.loading import DataSplits
from toolkit.data.sample import Sample
from toolkit.errors import ModelError, ToolkitError
from toolkit.images import ImageStore
from toolkit.models.chat_template import open_block, read_template, set_template
from toolkit.models.families import family_of
from toolkit.models.image_tokens import Length, check_image_token
from toolkit.models.lengths import count_lengths, describe_too_long, processor_input_size
from toolkit.models.model_paths import model_source
from toolkit.models.processor import open_processor
from toolkit.models.prompts import Prompts
from toolkit.planning.architecture import Architecture, Tower
from toolkit.planning.cache import cached_count, hash_processor_files
from toolkit.planning.model_files import cached_file, find_configuration
from toolkit.recipe import Model, Recipe

COUNTED = 400
"""Most rows that a plan counts, evenly spaced. The stages check every row."""

CHARACTERS = 4
"""Characters of English text per token, a rule of thumb for models without an available tokenizer."""

TEMPLATE = 30
"""Approximate tokens that a chat template adds to a prompt."""

SMALLEST_SIDE = 256
"""Processors enlarge images with fewer pixels than a square with this side, or with a smaller one."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that a plan examines: those of the recipe, or synthetic rows.

    ``counts`` is the number of rows in each split.
    """

    data: DataSplits
    images: ImageStore
    counts: Mapping[str, int]
    synthetic: bool = False


IMAGE_TOKEN_FIELDS = ("image_token_id", "image_token_index")
"""Fields of config.json with the token that a model replaces by the features of an image."""

TEMPLATE_FAULTS = (
    "model.chat_template_missing",
    "model.chat_template_fails",
    "model.chat_template_without_turn_end",
    "model.chat_template_without_thinking_switch",
    "model.chat_template_unreadable",
    "model.image_token_mismatch",
    "model.image_tokens_not_counted",
    "model.library_missing",
    "model.reasoning_block_open",
)
"""Codes of errors with which every stage would end."""


@dataclass(frozen=True, slots=True)
class RowSize:
    """One row in tokens and patches. Plans use the longest row for memory and the mean row for time."""

    text: int
    """Tokens of the prompt without images."""
    images: int
    """Tokens of the images."""
    answer: int
    """Tokens of the reference answer (SFT), or of the longer answer (DPO)."""
    image_count: int
    patches: int
    """Patches of all images in the vision tower."""
    sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) of the images as the processor receives them. Empty: unknown."""
    earlier: int = 0
    """Tokens of earlier assistant turns, which are part of ``text`` (SFT)."""

    @property
    def supervised(self) -> int:
        """Return the tokens that the SFT loss covers."""
        return self.answer + self.earlier

    @property
    def prompt(self) -> int:
        """Return the tokens of text and images."""
        return self.text + self.images

    def limited(self, side: int, cell: int, merge: int) -> "RowSize":
        """Return the row with images of at most ``side`` pixels, for models whose image tokens depend on the size.

        A token covers ``cell`` x ``cell`` pixels and ``merge`` x ``merge`` patches.
        """
        tokens = 0
        for size in self.sizes:
            scale = min(1.0, side / max(size))
            across, down = (-(-round(one * scale) // cell) for one in size)
            tokens += max(across * down, (SMALLEST_SIDE // cell) ** 2)
        images = min(self.images, tokens)
        return replace(self, images=images, patches=images * merge**2)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of the counted rows. Each of ``lengths`` has prompt text, images and reference answer.

    ``exact`` is False if the tokens were estimated from characters and image sizes. ``too_long`` names rows whose
    prompt and reference answer exceed ``limit``. ``rows`` is 0 if the rows cannot be read: see
    ``longest_possible_row``.
    """

    rows: int
    lengths: tuple[Length, ...]
    limit: int
    exact: bool
    too_long: tuple[str, ...] = ()
    longest_sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) of the images of ``longest``, as the processor receives them. Empty: unknown.

    For ``longest_possible_row`` they are unknown, because smaller images would leave more tokens for text.
    """
    longest_prompt_sizes: tuple[tuple[int, int], ...] = ()

    @property
    def longest(self) -> Length:
        """Return the row with the most tokens."""
        return max(self.lengths, key=lambda one: one.total)

    @property
    def longest_prompt(self) -> Length:
        """Return the row with the most prompt tokens."""
        return max(self.lengths, key=lambda one: one.text + one.images)

    def percentiles(self, part: str) -> dict[str, int]:
        """Return median, 95th percentile and maximum of ``total``, ``text``, ``images`` or ``answer``."""
        values = [getattr(one, part) for one in self.lengths]
        return {
            "median": int(np.median(values)),
            "p95": int(np.percentile(values, 95)),
            "max": int(max(values)),
        }

    def to_json(self) -> dict[str, object]:
        """Return the entry ``tokens`` of plan.json."""
        facts = {"rows": self.rows, "counted": len(self.lengths), "exact": self.exact, "limit": self.limit}
        percentiles = {part: self.percentiles(part) for part in ("total", "text", "images", "answer")}
        return {**facts, "too_long": list(self.too_long), **percentiles}


def find_processor(recipe: Recipe) -> Any | None:
    """Return the model's processor from its folder or the Hub's cache, without a request. None: it is in neither.

    Raises:
        ModelError: a library of the processor is missing, or its chat template does not suit the recipe.
    """
    if processor_folder(recipe.model) is None:
        return None
    try:
        processor = open_processor(recipe.model, local=True)
    except ModelError as error:
        if error.code == "model.library_missing":
            raise
        return None  # The plan reports it for a model folder. In the Hub's cache, files may be incomplete.
    set_template(processor, recipe.prompt)
    return processor


def opened_block(recipe: Recipe) -> str:
    """Return the tag of a reasoning block that the generation prompt of a recipe with thinking opens.

    Raises:
        ModelError: see ``find_processor``.
    """
    processor = find_processor(recipe) if recipe.prompt.thinking else None
    return open_block(processor) if processor is not None else ""


def processor_folder(model: Model) -> Path | None:
    """Return the folder of the processor's files: the model's folder, or the Hub's cache. None: they are in neither."""
    folder = Path(model_source(model))
    if folder.is_dir():
        return folder
    file = cached_file(model, "tokenizer_config.json")
    return None if file is None else file.parent


def count_rows(
    recipe: Recipe,
    samples: Sequence[Sample],
    images: ImageStore,
    architecture: Architecture | None,
    *,
    pairs: bool = False,
) -> Tokens:
    """Return the tokens of at most ``COUNTED`` rows, with the reference answer.

    Args:
        recipe: The recipe.
        samples: The rows.
        images: The store of their images.
        architecture: The model's architecture, for an estimate without a processor. None: unknown.
        pairs: Count the longer answer of each preference instead, to which DPO pads the other one.

    Raises:
        DataError: a row contains a special token of the model.
        ImageError: an image cannot be read.
        ModelError: neither a processor nor a configuration is available.
    """
    prompts = Prompts.of(recipe, images)
    if not pairs:
        return _count_answers(recipe, prompts, samples, architecture)
    chosen, rejected = (
        _count_answers(recipe, prompts.of_pair(answer), samples, architecture) for answer in ("chosen", "rejected")
    )
    both = zip(chosen.lengths, rejected.lengths, strict=True)
    longer = tuple(max(pair, key=lambda one: one.total) for pair in both)
    too_long = tuple(dict.fromkeys((*chosen.too_long, *rejected.too_long)))
    return replace(chosen, lengths=longer, too_long=too_long)


def _count_answers(
    recipe: Recipe, prompts: Prompts, samples: Sequence[Sample], architecture: Architecture | None
) -> Tokens:
    chosen = samples[:: max(1, -(-len(samples) // COUNTED))]
    folder = processor_folder(recipe.model)

    def count() -> Tokens:
        return _count(recipe, prompts, chosen, len(samples), architecture)

    if folder is None or recipe.model.trust_remote_code:  # Custom code cannot be part of the key.
        return count()
    inputs = [_token_inputs(sample, prompts) for sample in chosen]
    side, limit, thinking = recipe.images.max_side, recipe.model.max_tokens, recipe.prompt.thinking
    template = read_template(recipe.prompt.chat_template) if recipe.prompt.chat_template else None
    key = [hash_processor_files(folder), template, thinking, limit, side, len(samples), inputs]
    return cached_count(Tokens, key, count, lambda found: found.exact)


def _count(
    recipe: Recipe, prompts: Prompts, chosen: Sequence[Sample], rows: int, architecture: Architecture | None
) -> Tokens:
    processor, limit = find_processor(recipe), recipe.model.max_tokens
    if processor is None:
        lengths = tuple(_estimate(sample, prompts, architecture) for sample in chosen)
        return Tokens(rows, lengths, limit, exact=False)
    if any(sample.images for sample in chosen):
        _check_image_token(processor, recipe.model)
    counted = count_lengths(processor, prompts, chosen, limit)
    too_long = tuple(describe_too_long(counted, chosen, limit))
    return Tokens(rows, counted.lengths, limit, exact=True, too_long=too_long)


def _check_image_token(processor: Any, model: Model) -> None:
    """Check the image token of the model, if config.json has one.

    Raises:
        ModelError: see ``check_image_token``.
    """
    config = find_configuration(model)
    if config is None or model.trust_remote_code:
        return
    token = next((config.fields[name] for name in IMAGE_TOKEN_FIELDS if name in config.fields), None)
    if isinstance(token, int):
        check_image_token(processor, token)


def _token_inputs(sample: Sample, prompts: Prompts) -> list[Any]:
    """Return everything that a row's tokens depend on, and its name, by which rows that are too long are reported."""
    sizes = [processor_input_size(ref, prompts.images) for ref in sample.images]
    return [sample.id, prompts.messages(sample), prompts.task.target(sample), sizes]


def longest_possible_row(recipe: Recipe, architecture: Architecture) -> Tokens:
    """Return a row that fills model.max_tokens, with a square image of max_side. It replaces rows that cannot be read.

    Raises:
        ToolkitError: see ``image_token_count``.
    """
    limit, side = recipe.model.max_tokens, recipe.images.max_side
    images = min(image_token_count((side, side), architecture), limit)
    answer = min(limit - images, recipe.evaluation.max_completion_tokens)
    return Tokens(0, (Length(limit - images - answer, images, answer),), limit, exact=False)


def row_size(length: Length, tower: Tower | None, sizes: tuple[tuple[int, int], ...] = ()) -> RowSize:
    """Return a row as the memory formulas need it. Its patches follow from its image tokens."""
    if tower is None or not length.images:
        return RowSize(length.text, length.images, length.answer, 0, 0, earlier=length.earlier)
    if tower.side is not None:
        count = max(1, round(length.images / (tower.tokens or length.images)))
        patches = count * (tower.side // tower.patch) ** 2
        return RowSize(length.text, length.images, length.answer, count, patches, earlier=length.earlier)
    patches = length.images * tower.merge**2
    return RowSize(length.text, length.images, length.answer, max(1, len(sizes)), patches, sizes, length.earlier)


def image_token_count(size: tuple[int, int], architecture: Architecture) -> int:
    """Return the tokens of an image of (width, height), without a processor.

    Gemma 3 has the same number for every image. The vision towers of Qwen keep the size, rounded to whole tokens of
    ``patch * merge`` pixels a side (``smart_resize`` in transformers' Qwen2VLImageProcessor). Their upper limit of
    pixels is above what ``images.max_side`` allows.

    Raises:
        ToolkitError: the architecture has no supported vision tower.
    """
    tower = architecture.vision
    if tower is None:
        rule, remedy = "the model must have a vision tower", "Choose a vision-language model."
        raise ToolkitError("model.no_vision_tower", rule, value=architecture.model_type, remedy=remedy)
    if tower.tokens is not None:
        return tower.tokens
    cell = tower.patch * tower.merge
    width, height = (max(cell, round(side / cell) * cell) for side in size)
    least = family_of(architecture.model_type).least_pixels
    if width * height < least:
        scale = (least / (size[0] * size[1])) ** 0.5
        width, height = (-(-int(side * scale) // cell) * cell for side in size)
    return (width // cell) * (height // cell)


def _estimate(sample: Sample, prompts: Prompts, architecture: Architecture | None) -> Length:
    if architecture is None:
        rule = "counting tokens needs the model's processor or its configuration, and neither is available"
        raise ModelError("model.tokens_unknown", rule, remedy="Download the model, or correct model.name.")
    turns = prompts.turns(sample)
    text = TEMPLATE * len(turns) + len(prompts.text(sample)) // CHARACTERS
    earlier = sum(1 + len(turn.text) // CHARACTERS for turn in turns if turn.role == "assistant")
    images = sum(image_token_count(processor_input_size(ref, prompts.images), architecture) for ref in sample.images)
    return Length(text, images, 1 + len(prompts.task.target(sample)) // CHARACTERS, earlier)
