"""What a user is told where one row is too much for the memory: the keys of the recipe that make it smaller."""

from collections.abc import Iterator

import torch

from toolkit.errors import TrainingError
from toolkit.recipe import Optimisation, Recipe


def advice(recipe: Recipe, stage: str) -> str:
    """Those keys that have something left to give, the most effective first."""
    section = recipe.grpo if stage == "grpo" else recipe.sft
    return f"To make a row smaller: {'; '.join(_keys(recipe, stage, section))}."


def nothing_left(place: str, what: str, remedy: str) -> TrainingError:
    """The error at the bottom of the ladder; ``what`` is counted in it, rows or completions."""
    return TrainingError(
        f"the GPU's memory must hold one of the {what} at least",
        place=place,
        value=f"out of memory with 1 at once, {_filled()}",
        remedy=remedy,
    )


def _keys(recipe: Recipe, stage: str, section: Optimisation | None) -> Iterator[str]:
    model = recipe.model
    if section and not section.gradient_checkpointing:
        yield f"{stage}.gradient_checkpointing = true"
    if model.tuning == "full":
        yield 'model.tuning = "lora"'
    elif model.precision not in ("4bit", "auto"):
        yield 'model.precision = "4bit"'
    yield f"images.max_side below {recipe.images.max_side}"
    if stage == "grpo" and recipe.grpo:
        yield f"grpo.max_completion_tokens below {recipe.grpo.max_completion_tokens}"
    if section and section.optimizer != "paged_adamw_8bit":
        yield f'{stage}.optimizer = "paged_adamw_8bit"'
    if model.tuning == "lora" and recipe.lora.r > 1:
        yield f"lora.r below {recipe.lora.r}"
    if recipe.lora.vision:
        yield "lora.vision = false"
    yield "a shorter prompt, or a smaller model"


def _filled() -> str:
    if not torch.cuda.is_available():
        return "on a CPU"
    free, total = torch.cuda.mem_get_info()
    own = torch.cuda.memory_allocated()
    return f"{own / 2**30:.1f} GiB held by this process, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
