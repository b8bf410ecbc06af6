"""The plan of a recipe with [imagegen]: images, optimizer steps and disk, and the figures that are not planned yet."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.recipe import Recipe
from toolkit.recipe.imagegen import Imagegen

_MIB = 2**20
_TINY_LORA_PARAMETERS_OF_RANK_1 = 3_072
_SD_LORA_PARAMETERS_OF_RANK_1 = 3_188_736 // 16
"""Parameters of a LoRA of rank 1 on the attention of the shipped DiT, and of Stable Diffusion 1.x's UNet."""


@dataclass(frozen=True, slots=True)
class ImagegenPlan:
    """Counts of a run.

    Attributes:
        ratings: files of ratings, or the number of synthetic images.
        evaluations: evaluations of generated images, each of ``images_per_evaluation``.
        generated: images that are generated in all.
        passes: forward passes of the generator for one image, in all. Guidance doubles them.
        sft_steps: optimizer steps of sft and its control together.
        ddpo_steps: optimizer steps of ddpo.
        checkpoint_bytes: size of the checkpoints that are kept, without trained encoders.
        unknown: figures that this plan does not have.
    """

    ratings: str
    evaluations: int
    images_per_evaluation: int
    generated: int
    passes: int
    sft_steps: int
    ddpo_steps: int
    checkpoint_bytes: int
    unknown: tuple[str, ...]


def plan_imagegen(recipe: Recipe) -> ImagegenPlan:
    """Return the plan of a recipe with [imagegen]."""
    section = recipe.imagegen
    if section is None:
        raise ValueError("the recipe must have the section [imagegen]")
    keys = section.update
    arms = len(keys.methods) + int(keys.control)
    rounds = keys.rounds if "ddpo" in keys.methods else 0
    evaluations = 1 + arms + (rounds + 1 if rounds else 0)
    images = section.judge.images
    generated = evaluations * images + rounds * keys.images_per_round
    guided = 2 if section.generator.guidance_scale > 1 else 1
    updates = rounds * keys.images_per_round * section.generator.steps * guided
    sft = keys.sft_steps * (int("sft" in keys.methods) + int(keys.control))
    return ImagegenPlan(
        ratings=_ratings(section),
        evaluations=evaluations,
        images_per_evaluation=images,
        generated=generated,
        passes=generated * section.generator.steps * guided + updates + sft * keys.sft_batch_size,
        sft_steps=sft,
        ddpo_steps=rounds * keys.updates_per_round,
        # The LoRA, its file for diffusers, two moments of AdamW and the best round's, in float32.
        checkpoint_bytes=(recipe.run.keep_checkpoints * 5 + arms) * 4 * _lora(section),
        unknown=("GPU memory", "hours"),
    )


def _ratings(section: Imagegen) -> str:
    if section.synthetic is not None:
        settings = section.synthetic
        return f"{settings.images:,} synthetic images, {settings.images * settings.raters_per_image:,} ratings"
    return ", ".join(Path(name).name for name in section.ratings)


def _lora(section: Imagegen) -> int:
    rank = section.generator.lora.r
    return (
        _TINY_LORA_PARAMETERS_OF_RANK_1 * rank
        if section.generator.model == "tiny"
        else _SD_LORA_PARAMETERS_OF_RANK_1 * rank
    )


def plan_lines(plan: ImagegenPlan) -> Iterator[str]:
    """Yield the plan as text."""
    yield f"ratings: {plan.ratings}"
    yield (
        f"images: {plan.generated:,} to generate, {plan.evaluations} evaluations of {plan.images_per_evaluation:,} "
        "among them"
    )
    yield f"generator: {plan.passes:,} passes of one image, forward or forward and backward"
    yield f"optimizer steps: {plan.sft_steps:,} of sft and its control, {plan.ddpo_steps:,} of ddpo"
    yield f"disk: {plan.checkpoint_bytes / _MIB:,.1f} MiB of checkpoints, without trained encoders"
    yield f"not planned yet: {', '.join(plan.unknown)}"
