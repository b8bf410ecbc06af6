"""Generators that are small enough for tests."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from toolkit.imagegen.evaluation.evaluate import ImageMetrics
from toolkit.imagegen.evaluation.statistics import Bootstrap
from toolkit.imagegen.generators.dit import Dit, DitConfig, DitGenerator, load_dit_generator, save_dit, split_words
from toolkit.imagegen.generators.generator import GeneratorSettings
from toolkit.imagegen.generators.lora import LoraSettings, lora_parameters
from toolkit.imagegen.ratings.synthetic_images import PROMPTS as SYNTHETIC_PROMPTS
from toolkit.imagegen.training.ddpo import DdpoRound, DdpoSettings, Score, roll_out, update_policy
from toolkit.imagegen.training.guards import Evaluation, GuardSettings
from toolkit.imagegen.training.sft import SftSettings
from toolkit.imagegen.training.update_state import UpdateState

CPU = torch.device("cpu")
PROMPTS = ("oct normal", "oct fluid", "chest ct normal", "chest ct nodule")
WORDS = ("oct", "normal", "fluid", "chest", "ct", "nodule")
CONFIG = DitConfig(WORDS, image_size=8, patch_size=4, width=32, layers=2, heads=2, prompt_words=6)
LORA = LoraSettings(rank=4, alpha=8)

DDPO = DdpoSettings(
    prompts_per_round=4,
    generations=8,
    denoising_steps=5,
    micro_batch=16,
    minibatches=2,
    epochs=1,
    learning_rate=3e-3,
    clip_range=1e-3,
    advantage_clip=5.0,
    kl_weight=0.0,
    max_gradient_norm=1.0,
    seed=0,
)
SFT = SftSettings(
    steps_per_round=20,
    batch_size=16,
    micro_batch=16,
    learning_rate=1e-2,
    prompt_dropout=0.0,
    max_gradient_norm=1.0,
    seed=0,
)
GUARDS = GuardSettings(
    judge="stop",
    judge_evaluations=2,
    diversity="stop",
    min_diversity=0.6,
    kl="stop",
    max_kl=0.1,
    copies="stop",
    max_copies=0.05,
    advantage_clip="log",
    max_clipped=0.1,
    bootstrap=Bootstrap(),
)


def random_dit_folder(folder: Path, config: DitConfig = CONFIG) -> Path:
    """A base whose zero-initialised layers are random, so that every layer matters."""
    torch.manual_seed(0)
    model = Dit(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_dit(folder, model, torch.float32)
    return folder


def prompts_dit_folder(folder: Path) -> Path:
    """A random base that knows the prompts of synthetic images."""
    prompts = [prompt for findings in SYNTHETIC_PROMPTS.values() for prompt in findings.values()]
    words = tuple(sorted({word for prompt in prompts for word in split_words(prompt)}))
    return random_dit_folder(folder, DitConfig(words, width=32, layers=1, heads=2))


def dit_generator(folder: Path, **changes: object) -> DitGenerator:
    settings = GeneratorSettings(str(folder), lora=LORA)
    return load_dit_generator(replace(settings, **changes), CPU)  # type: ignore[arg-type]


def randomise_lora(network: torch.nn.Module, scale: float = 0.1) -> None:
    """Give both factors random values, so that the LoRA changes the output."""
    generator = torch.Generator().manual_seed(7)
    for parameter in lora_parameters(network).values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale


def ddpo_round(state: UpdateState, settings: DdpoSettings, prompts: Sequence[str], score: Score) -> DdpoRound:
    """Roll out, score and update once."""
    return update_policy(state, settings, roll_out(state.generator, settings, prompts, score, state.round))


def evaluation_of(
    metrics: ImageMetrics, round_number: int, kl: float | None, clipped_advantages: float | None
) -> Evaluation:
    """Return the measurements of a round that the guards check."""
    return Evaluation(
        round=round_number,
        judge_scores=metrics.judge_by_key,
        diversity=metrics.diversity.distance.value,
        real_diversity=metrics.real_diversity.distance.value,
        kl=kl,
        below_floor=metrics.copies.below_floor.value,
        clipped_advantages=clipped_advantages,
    )
