"""Supervised fine-tuning of a generator on weighted, filtered images (reward-weighted regression, offline)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.errors import TrainingError
from toolkit.imagegen.generators.generator import Generator
from toolkit.imagegen.seeds import derive_seed
from toolkit.imagegen.training.shuffle import shuffled_passes
from toolkit.imagegen.training.update_state import UpdateState, optimizer_step

LoadImages = Callable[[Sequence[int]], Tensor]
"""Images (N, 3, H, W) in [0, 1] of the rows with these numbers."""


@dataclass(frozen=True, slots=True)
class SftSettings:
    """Settings of supervised fine-tuning.

    Attributes:
        steps_per_round: optimizer steps of a round.
        batch_size: images of an optimizer step.
        micro_batch: images in one forward pass.
        learning_rate: the learning rate of AdamW.
        prompt_dropout: fraction of prompts that are replaced by the empty prompt, for classifier-free guidance.
        max_gradient_norm: gradients are clipped to this norm.
        seed: the seed of order, noise, timesteps and dropped prompts.
    """

    steps_per_round: int
    batch_size: int
    micro_batch: int
    learning_rate: float
    prompt_dropout: float
    max_gradient_norm: float
    seed: int


@dataclass(frozen=True, slots=True)
class SftImages:
    """Training images.

    Attributes:
        load: reads images by number.
        numbers: the chosen images.
        prompts: the prompt of each chosen image.
        weights: the weight of each chosen image. Only their ratios matter.
    """

    load: LoadImages
    numbers: tuple[int, ...]
    prompts: tuple[str, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImages:
    """Training images as latents, on the CPU.

    Attributes:
        mean_NCHW: the mean of each image's latents.
        std_NCHW: their standard deviation. 0 if the generator has no VAE.
        prompts: the prompt of each image.
        weights_N: the weight of each image, divided by the mean weight.
    """

    mean_NCHW: Tensor
    std_NCHW: Tensor
    prompts: tuple[str, ...]
    weights_N: Tensor


@dataclass(frozen=True, slots=True)
class SftRound:
    """Measurements of one round.

    Attributes:
        round: number, from 1.
        images: distinct training images.
        loss: mean weighted loss.
        gradient_norm: mean norm before clipping, of the steps that were not skipped (0 if all were).
        optimizer_steps: optimizer steps, without skipped ones.
        skipped_steps: optimizer steps that float16 overflow skipped.
        learning_rate: the learning rate of the optimizer.
    """

    round: int
    images: int
    loss: float
    gradient_norm: float
    optimizer_steps: int
    skipped_steps: int
    learning_rate: float


def random_control(images: SftImages, pool: SftImages, seed: int) -> SftImages:
    """Return as many random images of the unfiltered ``pool`` as ``images`` has, all of one weight.

    It is the control of filtering and weighting: the same number of images, and with the same settings the same
    number of optimizer steps.

    Raises:
        TrainingError: the pool is smaller.
    """
    if len(pool.numbers) < len(images.numbers):
        raise TrainingError(
            "imagegen.control_images_too_few",
            f"the control must have at least {len(images.numbers)} images",
            place="imagegen.update.control",
            value=len(pool.numbers),
            remedy="Pass all rated images, before filtering.",
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "control"))
    rows = sorted(torch.randperm(len(pool.numbers), generator=generator)[: len(images.numbers)].tolist())
    numbers, prompts = [pool.numbers[row] for row in rows], [pool.prompts[row] for row in rows]
    return SftImages(pool.load, tuple(numbers), tuple(prompts), (1.0,) * len(rows))


def encode_training_images(generator: Generator, images: SftImages, batch_size: int) -> EncodedImages:
    """Return the latents of all training images, which every step then draws from.

    Raises:
        DataError: the generator cannot take a prompt.
        TrainingError: there is no image, or a weight is negative or all are zero.
    """
    generator.check_prompts(images.prompts)
    weights_N = torch.tensor(images.weights, dtype=torch.float32)
    if not images.numbers or bool((weights_N < 0).any()) or not float(weights_N.sum()) > 0:
        raise TrainingError(
            "imagegen.sft_weights_not_usable",
            "the images must have weights of at least 0, and one weight above 0",
            place="imagegen.update",
            value=f"{len(images.numbers)} images, weights from {min(images.weights, default=0.0)}",
            remedy="Lower the selector's threshold, or rate more images.",
        )
    parts = [
        generator.encode_images(images.load(images.numbers[first : first + batch_size]))
        for first in range(0, len(images.numbers), batch_size)
    ]
    mean, std = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return EncodedImages(mean, std, images.prompts, weights_N / weights_N.mean())


def sft_round(state: UpdateState, settings: SftSettings, images: EncodedImages) -> SftRound:
    """Run the optimizer steps of one round. The state's round is then one higher."""
    losses, outcomes = [], []
    for step in range(state.round * settings.steps_per_round, (state.round + 1) * settings.steps_per_round):
        losses.append(_accumulate(state, settings, images, step))
        outcomes.append(optimizer_step(state, settings.max_gradient_norm))
    state.round += 1
    norms = [outcome.gradient_norm for outcome in outcomes if not outcome.skipped]
    return SftRound(
        round=state.round,
        images=len(images.prompts),
        loss=sum(losses) / len(losses),
        gradient_norm=sum(norms) / len(norms) if norms else 0.0,
        optimizer_steps=len(norms),
        skipped_steps=len(outcomes) - len(norms),
        learning_rate=float(state.optimizer.param_groups[0]["lr"]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Noisy latents of an optimizer step, and the targets of the prediction, on the CPU.

    Attributes:
        noisy_NCHW: the noisy latents.
        timesteps_N: the timestep of each image.
        target_NCHW: the noise, or the velocity if the generator predicts it.
        weights_N: the weight of each image.
        prompts: the prompt of each image, empty if it is dropped.
    """

    noisy_NCHW: Tensor
    timesteps_N: Tensor
    target_NCHW: Tensor
    weights_N: Tensor
    prompts: list[str]


def _accumulate(state: UpdateState, settings: SftSettings, images: EncodedImages, step: int) -> float:
    """Add the gradient of one optimizer step, and return its loss."""
    generator = state.generator
    batch = _draw_batch(generator, settings, images, step)
    total = 0.0
    for first in range(0, settings.batch_size, settings.micro_batch):
        part = slice(first, first + settings.micro_batch)
        condition = generator.encode_prompts(batch.prompts[part])
        noisy, timesteps = batch.noisy_NCHW[part].to(generator.device), batch.timesteps_N[part].to(generator.device)
        output = generator.predict(noisy, timesteps, condition, guided=False)
        error_N = ((output - batch.target_NCHW[part].to(generator.device)) ** 2).flatten(1).mean(1)
        loss = (batch.weights_N[part].to(generator.device) * error_N).sum() / settings.batch_size
        state.scaler.scale(loss).backward()
        total += float(loss.detach())
    return total


def _draw_batch(generator: Generator, settings: SftSettings, images: EncodedImages, step: int) -> _Batch:
    """Draw everything random of a step before it is divided, so that the micro-batch does not change it."""
    first = step * settings.batch_size
    rows = shuffled_passes(len(images.prompts), first, first + settings.batch_size, settings.seed, "sft order")
    random = torch.Generator().manual_seed(derive_seed(settings.seed, "sft noise", step))
    mean, std = images.mean_NCHW[rows], images.std_NCHW[rows]
    clean = mean + std * torch.randn(mean.shape, generator=random)
    noise = torch.randn(mean.shape, generator=random)
    scheduler = generator.scheduler
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(rows),), generator=random)
    dropped = (torch.rand(len(rows), generator=random) < settings.prompt_dropout).tolist()
    velocity = scheduler.config.prediction_type == "v_prediction"
    return _Batch(
        scheduler.add_noise(clean, noise, timesteps),
        timesteps,
        scheduler.get_velocity(clean, noise, timesteps) if velocity else noise,
        images.weights_N[rows],
        ["" if drop else images.prompts[row] for row, drop in zip(rows, dropped, strict=True)],
    )
