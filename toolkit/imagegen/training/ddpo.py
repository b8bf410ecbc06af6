"""DDPO: a clipped, group-normalised policy gradient on the DDIM trajectory.

Differences to the paper (Black et al. 2023) and its code: rewards are normalised within the images of one prompt, as
in GRPO, instead of by a running mean per prompt. Rollout and update use the same rows in one pass, so that the ratio
of the first pass is 1 to the bit in half precision as well. "Optimizer step" is written in full here, and "step"
alone is a denoising step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.errors import RewardError, TrainingError
from toolkit.imagegen.generators.ddim import (
    DdimSchedule,
    kl_divergence,
    log_probability,
    make_schedule,
    step_distribution,
)
from toolkit.imagegen.generators.generator import Generator
from toolkit.imagegen.generators.lora import lora_disabled
from toolkit.imagegen.generators.sampling import Trajectory, draw_noise, sample
from toolkit.imagegen.seeds import derive_seed
from toolkit.imagegen.training.shuffle import shuffled_passes
from toolkit.imagegen.training.update_state import StepOutcome, UpdateState, optimizer_step

Score = Callable[[Tensor, Sequence[str]], Tensor]
"""Rewards (N) of images (N, 3, H, W) and their prompts."""

ADVANTAGE_EPSILON = 1e-4


@dataclass(frozen=True, slots=True)
class DdpoSettings:
    """Settings of a DDPO update.

    Attributes:
        prompts_per_round: prompts that each round samples, in turn from all prompts.
        generations: images per prompt.
        denoising_steps: DDIM steps of a rollout.
        micro_batch: images in one forward pass, in rollout and update.
        minibatches: optimizer steps per pass over the round's images and steps, at most one per forward pass.
        epochs: passes over the round's images and steps.
        learning_rate: the learning rate of AdamW.
        clip_range: the ratio is clipped to 1 +- this.
        advantage_clip: advantages are clipped to +- this.
        kl_weight: factor of the KL divergence to the base in the loss. 0 only reports it.
        max_gradient_norm: gradients are clipped to this norm.
        seed: the seed of prompts, noise and order.
    """

    prompts_per_round: int
    generations: int
    denoising_steps: int
    micro_batch: int
    minibatches: int
    epochs: int
    learning_rate: float
    clip_range: float
    advantage_clip: float
    kl_weight: float
    max_gradient_norm: float
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """A round's images with their trajectories, in chunks of one forward pass.

    Attributes:
        prompts: the prompt of each image.
        chunks: trajectories of consecutive images, of at most ``micro_batch`` images each.
        images_NCHW: the images in [0, 1], on the CPU (images x 3 x height x width).
        rewards_N: the reward of each image, finite, on the CPU.
        passed_N: whether each image may be reinforced. The advantage of the others is at most 0. None: all of them.
    """

    prompts: tuple[str, ...]
    chunks: tuple[Trajectory, ...]
    images_NCHW: Tensor
    rewards_N: Tensor
    passed_N: Tensor | None = None


@dataclass(frozen=True, slots=True)
class DdpoRound:
    """Measurements of one round.

    Attributes:
        round: number, from 1.
        images: images that were rolled out.
        reward_mean: mean reward, before the update.
        reward_std: standard deviation of the rewards.
        zero_variance_groups: prompts whose images all have one reward. They give no gradient.
        groups: distinct prompts of the round.
        first_ratio_deviation: largest abs(ratio - 1) before the first optimizer step.
        clipped_advantages: fraction of advantages beyond the clip, before the gate.
        clip_fraction: fraction of ratios outside the clip range.
        loss: mean loss.
        kl_to_base: KL divergence of the trajectories to the base, before the update, in nats per latent dimension,
            summed over denoising steps.
        gradient_norm: mean norm before clipping, of the steps that were not skipped (0 if all were).
        optimizer_steps: optimizer steps, without skipped ones.
        skipped_steps: optimizer steps that float16 overflow skipped.
        learning_rate: the learning rate of the optimizer.
    """

    round: int
    images: int
    reward_mean: float
    reward_std: float
    zero_variance_groups: int
    groups: int
    first_ratio_deviation: float
    clipped_advantages: float
    clip_fraction: float
    loss: float
    kl_to_base: float
    gradient_norm: float
    optimizer_steps: int
    skipped_steps: int
    learning_rate: float


@dataclass(frozen=True, slots=True, eq=False)
class Advantages:
    """Group-normalised rewards.

    Attributes:
        values_N: the advantage of each image, clipped.
        clipped: fraction of the advantages that were beyond the clip.
        zero_variance_groups: prompts whose images all have one reward. Their advantages are 0.
        groups: distinct prompts.
    """

    values_N: Tensor
    clipped: float
    zero_variance_groups: int
    groups: int


def roll_out(
    generator: Generator, settings: DdpoSettings, prompts: Sequence[str], score: Score, finished_rounds: int
) -> Rollout:
    """Sample and score the images of the next round.

    Raises:
        DataError: the generator cannot take a prompt.
        RewardError: rewards are not one finite number per image.
    """
    generator.check_prompts(prompts)
    schedule = make_schedule(generator.scheduler, settings.denoising_steps)
    chosen = choose_prompts(prompts, settings, finished_rounds)
    seed = derive_seed(settings.seed, "rollout", finished_rounds)
    chunks, images = [], []
    for first in range(0, len(chosen), settings.micro_batch):
        rows = range(first, min(first + settings.micro_batch, len(chosen)))
        noise = draw_noise(seed, rows, len(schedule), generator.latent_shape)
        chunks.append(sample(generator, schedule, [chosen[row] for row in rows], noise))
        images.append(generator.decode(chunks[-1].latents_TNCHW[-1]))
    images_NCHW = torch.cat(images)
    rewards_N = _checked(score(images_NCHW, chosen), len(chosen))
    return Rollout(tuple(chosen), tuple(chunks), images_NCHW, rewards_N)


def choose_prompts(prompts: Sequence[str], settings: DdpoSettings, finished_rounds: int) -> list[str]:
    """Return the prompt of each image of a round. Every prompt has its turn before one comes again."""
    first = finished_rounds * settings.prompts_per_round
    turns = shuffled_passes(len(prompts), first, first + settings.prompts_per_round, settings.seed, "prompts")
    return [prompts[turn] for turn in turns for _ in range(settings.generations)]


def group_advantages(rewards_N: Tensor, prompts: Sequence[str], clip: float) -> Advantages:
    """Return the advantage of each image: its reward, normalised within its prompt.

    The reward minus the mean of its prompt, divided by the standard deviation of its prompt, clipped to +- ``clip``.

    >>> found = group_advantages(torch.tensor([0.0, 1.0, 0.5, 0.5]), ["a", "a", "b", "b"], 5.0)
    >>> found.clipped, found.zero_variance_groups, found.groups
    (0.0, 1, 2)
    """
    advantages_N = torch.zeros_like(rewards_N)
    zero_variance = 0
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(row)
    for rows in groups.values():
        group = rewards_N[rows]
        std = group.std(correction=0)
        zero_variance += int(std < 1e-8)
        advantages_N[rows] = (group - group.mean()) / (std + ADVANTAGE_EPSILON)
    clipped = float((advantages_N.abs() > clip).float().mean())
    return Advantages(advantages_N.clamp(-clip, clip), clipped, zero_variance, len(groups))


def update_policy(state: UpdateState, settings: DdpoSettings, rollout: Rollout) -> DdpoRound:
    """Update the LoRA on a rollout of its present parameters. The state's round is then one higher.

    Raises:
        TrainingError: the first ratios are not 1, or gradients are not finite.
    """
    schedule = make_schedule(state.generator.scheduler, settings.denoising_steps).to(state.generator.device)
    grouped = group_advantages(rollout.rewards_N, rollout.prompts, settings.advantage_clip)
    advantages_N = grouped.values_N
    if rollout.passed_N is not None:
        advantages_N = torch.where(rollout.passed_N, advantages_N, advantages_N.clamp_max(0))
    advantages = advantages_N.split(settings.micro_batch)
    kl = _kl_to_base(state.generator, schedule, rollout.chunks)
    records: list[_PassRecord] = []
    outcomes: list[StepOutcome] = []
    first_deviation = 0.0
    for minibatch in _minibatches(settings, schedule, len(rollout.chunks), state.round):
        passes = [
            _backward_pass(
                state, settings, schedule, _PassInput(rollout.chunks[chunk], step, advantages[chunk]), len(minibatch)
            )
            for chunk, step in minibatch
        ]
        if not outcomes:
            first_deviation = max(one.ratio_deviation for one in passes)
            _check_first_ratios(first_deviation, settings.clip_range)
        records += passes
        outcomes.append(optimizer_step(state, settings.max_gradient_norm))
    state.round += 1
    taken = [outcome.gradient_norm for outcome in outcomes if not outcome.skipped]
    return DdpoRound(
        round=state.round,
        images=len(rollout.prompts),
        reward_mean=float(rollout.rewards_N.mean()),
        reward_std=float(rollout.rewards_N.std(correction=0)),
        zero_variance_groups=grouped.zero_variance_groups,
        groups=grouped.groups,
        first_ratio_deviation=first_deviation,
        clipped_advantages=grouped.clipped,
        clip_fraction=_mean([one.clip_fraction for one in records]),
        loss=_mean([one.loss for one in records]),
        kl_to_base=kl,
        gradient_norm=_mean(taken),
        optimizer_steps=len(taken),
        skipped_steps=len(outcomes) - len(taken),
        learning_rate=float(state.optimizer.param_groups[0]["lr"]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _PassInput:
    """The input of a forward and backward pass: a chunk at one denoising step, with its advantages.

    Attributes:
        chunk: the trajectories of N images.
        step: the position of the denoising step.
        advantages_N: the advantage of each image.
    """

    chunk: Trajectory
    step: int
    advantages_N: Tensor


@dataclass(frozen=True, slots=True)
class _PassRecord:
    ratio_deviation: float
    clip_fraction: float
    loss: float


def _minibatches(
    settings: DdpoSettings, schedule: DdimSchedule, chunks: int, finished_rounds: int
) -> Iterator[list[tuple[int, int]]]:
    """Yield the (chunk, step) pairs of each optimizer step, shuffled anew in each epoch."""
    pairs = [(chunk, step) for chunk in range(chunks) for step in schedule.stochastic]
    for epoch in range(settings.epochs):
        generator = torch.Generator().manual_seed(derive_seed(settings.seed, "order", finished_rounds, epoch))
        order = torch.randperm(len(pairs), generator=generator)
        for part in order.tensor_split(min(settings.minibatches, len(pairs))):
            yield [pairs[position] for position in part.tolist()]


def _backward_pass(
    state: UpdateState, settings: DdpoSettings, schedule: DdimSchedule, rows: _PassInput, passes: int
) -> _PassRecord:
    """Add the gradient of one chunk at one step, as one of ``passes`` of an optimizer step."""
    generator = state.generator
    base_mean = _base_mean(generator, schedule, rows) if settings.kl_weight else None
    # From here to the end of backward the adapter must not be switched.
    mean, std = _distribution(generator, schedule, rows)
    after = rows.chunk.latents_TNCHW[rows.step + 1].to(generator.device)
    old = rows.chunk.log_probabilities_SN[rows.step].to(generator.device)
    ratio = (log_probability(after, mean, std) - old).exp()
    advantages = rows.advantages_N.to(generator.device)
    clipped = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
    if base_mean is not None:
        loss = loss + settings.kl_weight * kl_divergence(mean, base_mean, std).mean()
    state.scaler.scale(loss / passes).backward()
    deviation = (ratio.detach() - 1).abs()
    return _PassRecord(
        float(deviation.max()), float((deviation > settings.clip_range).float().mean()), float(loss.detach())
    )


def _distribution(generator: Generator, schedule: DdimSchedule, rows: _PassInput) -> tuple[Tensor, Tensor]:
    """Return mean_NCHW and std_N111 of the latents after the denoising step, on the generator's device."""
    before = rows.chunk.latents_TNCHW[rows.step].to(generator.device)
    steps_N = torch.full((len(before),), rows.step, device=generator.device)
    output = generator.predict(before, schedule.timesteps_S[steps_N], rows.chunk.condition)
    return step_distribution(schedule, steps_N, output, before)


@torch.no_grad()
def _base_mean(generator: Generator, schedule: DdimSchedule, rows: _PassInput) -> Tensor:
    """Return mean_NCHW of the base, without the LoRA."""
    with lora_disabled(generator.network):
        return _distribution(generator, schedule, rows)[0]


@torch.no_grad()
def _kl_to_base(generator: Generator, schedule: DdimSchedule, chunks: Sequence[Trajectory]) -> float:
    """Return the KL divergence of the trajectories, over every chunk and every step, but not over every pair."""
    steps = schedule.stochastic
    values: dict[int, list[float]] = {step: [] for step in steps}
    for number in range(max(len(chunks), len(steps))):
        step = steps[number % len(steps)]
        rows = _PassInput(chunks[number % len(chunks)], step, torch.empty(0))
        mean, std = _distribution(generator, schedule, rows)
        values[step].append(float(kl_divergence(mean, _base_mean(generator, schedule, rows), std).mean()))
    return sum(_mean(own) for own in values.values())


def _check_first_ratios(deviation: float, clip_range: float) -> None:
    if not deviation <= clip_range / 10:
        raise TrainingError(
            "imagegen.first_ratio_not_one",
            f"before the first optimizer step of a round the ratio must be 1 within {clip_range / 10:g}, a tenth of "
            "the clip range",
            place="imagegen.update.clip_range",
            value=deviation,
            remedy="Use float32, or a larger clip range, because rollout and update differ by more than rounding.",
        )


def _checked(rewards: Tensor, count: int) -> Tensor:
    rewards_N = rewards.detach().float().cpu()
    if rewards_N.shape != (count,) or not bool(torch.isfinite(rewards_N).all()):
        raise RewardError(
            "imagegen.rewards_not_finite",
            f"a reward function must return {count} finite numbers, one per image",
            place="imagegen reward",
            value=f"shape {tuple(rewards_N.shape)}, {int((~torch.isfinite(rewards_N)).sum())} not finite",
            remedy="Check the reward models.",
        )
    return rewards_N


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
