"""From the keys of [imagegen] to the settings of each part, with a seed of its own for each."""

from pathlib import Path

import torch

from toolkit.imagegen.evaluation.evaluate import ImageEvaluationSettings
from toolkit.imagegen.evaluation.statistics import Bootstrap
from toolkit.imagegen.generators.generator import GeneratorSettings, Precision
from toolkit.imagegen.generators.lora import LoraSettings
from toolkit.imagegen.scorers.extractor import ExtractorSettings
from toolkit.imagegen.scorers.fitting import FitSettings
from toolkit.imagegen.scorers.heads import HeadSettings
from toolkit.imagegen.scorers.policy import PolicySettings
from toolkit.imagegen.scorers.selector import SelectorSettings
from toolkit.imagegen.scorers.text_tower import WORDS, TextSettings
from toolkit.imagegen.scorers.vision_tower import CNN, FROM_SCRATCH, OPEN_CLIP, TINY_CLIP, TowerSettings
from toolkit.imagegen.seeds import imagegen_of, seed_of
from toolkit.imagegen.training.ddpo import DdpoSettings
from toolkit.imagegen.training.guards import GuardSettings
from toolkit.imagegen.training.sft import SftSettings
from toolkit.recipe import Recipe
from toolkit.recipe.imagegen_sections import BIOMEDCLIP, TINY_GENERATOR, Tuning

BASE_FOLDER = Path(__file__).parent / "tiny_base"
"""The DiT that ships as the generator ``tiny``. ``tests/tiny_training/image_generator.py`` trains it."""

BIOMEDCLIP_NAME = f"{OPEN_CLIP}hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
_WIDE = 24


def tower_settings(encoder: str, revision: str | None, tuning: Tuning, layers: int, crop_grid: int) -> TowerSettings:
    """Return the vision tower that a recipe's ``encoder`` means."""
    frozen = None if tuning == "auto" else tuning == "frozen"
    names = {"tiny": CNN, "tiny-wide": CNN, "tiny-vit": TINY_CLIP, BIOMEDCLIP: BIOMEDCLIP_NAME}
    name = names.get(encoder, encoder)
    if name in FROM_SCRATCH:  # they take images of any size, or of the recipe's
        width = _WIDE if encoder == "tiny-wide" else TowerSettings().width
        return TowerSettings(name, layer_count=layers, frozen=frozen, width=width)
    return TowerSettings(name, revision, layer_count=layers, crop_grid=crop_grid, frozen=frozen)


def selector_settings(recipe: Recipe) -> SelectorSettings:
    """Return the selector's settings."""
    keys, seed = imagegen_of(recipe).selector, seed_of(recipe, "selector")
    return SelectorSettings(
        tower_settings(keys.encoder, keys.revision, keys.tuning, keys.layers, keys.crop_grid),
        HeadSettings(keys.heads, keys.hidden),
        FitSettings(keys.epochs, keys.batch_size, keys.learning_rate, keys.weight_decay, seed),
        augment=keys.augment,
        seed=seed,
    )


def judge_settings(recipe: Recipe) -> SelectorSettings:
    """Return the judge's settings: the selector's, with its own encoder, seed, epochs and learning rate."""
    section, seed = imagegen_of(recipe), seed_of(recipe, "judge")
    keys, shared = section.judge, section.selector
    return SelectorSettings(
        tower_settings(keys.encoder, keys.revision, keys.tuning, shared.layers, shared.crop_grid),
        HeadSettings(shared.heads, shared.hidden),
        FitSettings(keys.epochs, shared.batch_size, keys.learning_rate, shared.weight_decay, seed),
        augment=shared.augment,
        seed=seed,
    )


def policy_settings(recipe: Recipe) -> PolicySettings:
    """Return the policy's settings."""
    section, seed = imagegen_of(recipe), seed_of(recipe, "policy")
    keys, tiny = section.policy, section.policy.encoder == "tiny"
    frozen = None if keys.tuning == "auto" else keys.tuning == "frozen"
    return PolicySettings(
        tower_settings(keys.encoder, keys.revision, keys.tuning, section.selector.layers, 0),
        TextSettings(WORDS) if tiny else TextSettings(keys.encoder, keys.revision, frozen=frozen),
        HeadSettings(section.selector.heads, keys.hidden),
        FitSettings(keys.epochs, keys.batch_size, keys.learning_rate, keys.weight_decay, seed),
        width=keys.projection,
        matched_target="one" if keys.target == "match" else "rating",
        augment=False,
        seed=seed,
    )


def extractor_settings(recipe: Recipe) -> ExtractorSettings:
    """Return the feature extractor's settings: the judge's encoder with another seed, and no crops."""
    section, seed = imagegen_of(recipe), seed_of(recipe, "extractor")
    keys = section.judge
    tower = tower_settings(keys.encoder, keys.revision, "auto", section.selector.layers, 0)
    return ExtractorSettings(tower, keys.features, FitSettings(epochs=10, seed=seed), seed)


def generator_settings(recipe: Recipe, device: torch.device) -> GeneratorSettings:
    """Return the generator's settings on a device."""
    section = imagegen_of(recipe)
    keys = section.generator
    return GeneratorSettings(
        base=str(BASE_FOLDER) if keys.model == TINY_GENERATOR else keys.model,
        revision=keys.revision,
        precision=_precision(keys.precision, device),
        guidance_scale=keys.guidance_scale,
        image_size=section.size,
        gradient_checkpointing=keys.gradient_checkpointing,
        lora=LoraSettings(keys.lora.r, keys.lora.alpha),
        seed=seed_of(recipe, "generator"),
    )


def sft_settings(recipe: Recipe) -> SftSettings:
    """Return the settings of ``sft`` and of its control. A round ends with a checkpoint."""
    section = imagegen_of(recipe)
    keys = section.update
    return SftSettings(
        steps_per_round=round_steps(keys.sft_steps, recipe.run.checkpoint_steps),
        batch_size=keys.sft_batch_size,
        micro_batch=min(keys.micro_batch, keys.sft_batch_size),
        learning_rate=keys.sft_learning_rate,
        prompt_dropout=0.1 if section.generator.guidance_scale > 1 else 0.0,
        max_gradient_norm=keys.max_grad_norm,
        seed=seed_of(recipe, "sft"),
    )


def round_steps(steps: int, most: int) -> int:
    """Return the largest divisor of ``steps`` up to ``most``, so that all rounds are equally long.

    >>> round_steps(200, 50), round_steps(90, 50), round_steps(7, 50)
    (50, 45, 7)
    """
    return max(size for size in range(1, min(steps, most) + 1) if not steps % size)


def ddpo_settings(recipe: Recipe) -> DdpoSettings:
    """Return the settings of ``ddpo``."""
    section = imagegen_of(recipe)
    keys = section.update
    return DdpoSettings(
        prompts_per_round=keys.prompts_per_round,
        generations=keys.images_per_prompt,
        denoising_steps=section.generator.steps,
        micro_batch=keys.micro_batch,
        minibatches=keys.updates_per_round,
        epochs=1,
        learning_rate=keys.learning_rate,
        clip_range=keys.clip_range,
        advantage_clip=section.guards.advantage_clip,
        kl_weight=keys.kl,
        max_gradient_norm=keys.max_grad_norm,
        seed=seed_of(recipe, "ddpo"),
    )


def bootstrap_of(recipe: Recipe) -> Bootstrap:
    """Return the settings of every interval."""
    return Bootstrap(imagegen_of(recipe).judge.bootstrap, seed_of(recipe, "evaluation"))


def evaluation_settings(recipe: Recipe) -> ImageEvaluationSettings:
    """Return the settings of an evaluation of generated images."""
    quantile = imagegen_of(recipe).guards.copy_quantile
    return ImageEvaluationSettings(bootstrap_of(recipe), copy_quantile=quantile, seed=seed_of(recipe, "evaluation"))


def guard_settings(recipe: Recipe) -> GuardSettings:
    """Return the limits of an update. The advantage clip never stops: it limits each update by itself."""
    keys = imagegen_of(recipe).guards
    return GuardSettings(
        judge=keys.action,
        judge_evaluations=keys.judge_evaluations,
        diversity=keys.action,
        min_diversity=keys.min_diversity,
        kl=keys.action,
        max_kl=keys.max_kl,
        copies=keys.action,
        max_copies=keys.max_copies,
        advantage_clip="log",
        max_clipped=keys.max_clipped,
        bootstrap=bootstrap_of(recipe),
    )


def _precision(precision: str, device: torch.device) -> Precision:
    if precision != "auto":
        return precision  # type: ignore[return-value]  # the same literals
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
