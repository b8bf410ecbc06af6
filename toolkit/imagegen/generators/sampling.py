"""Generate images by DDIM, with noise that depends on the seed and the image's number only.

Every image has random numbers of its own. Two generators that sample with one seed are therefore paired by prompt and
noise, whatever their batch sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.imagegen.generators.ddim import DdimSchedule, log_probability, step_distribution
from toolkit.imagegen.generators.generator import Generator
from toolkit.imagegen.seeds import derive_seed


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Trajectories of N prompts in S denoising steps. Latents are float32 on the CPU.

    Attributes:
        latents_TNCHW: the noise, and the sample after each step (T = S + 1).
        log_probabilities_SN: the log-probability of each step, averaged over dimensions. 0 for a step of zero variance.
        condition: the encoded prompts, on the device.
    """

    latents_TNCHW: Tensor
    log_probabilities_SN: Tensor
    condition: Tensor


def draw_noise(seed: int, images: range, steps: int, shape: tuple[int, int, int]) -> Tensor:
    """Return standard normal noise (steps + 1, N, C, H, W): the initial latents, and the noise of each step."""
    columns = [
        torch.randn((steps + 1, *shape), generator=torch.Generator().manual_seed(derive_seed(seed, number)))
        for number in images
    ]
    return torch.stack(columns, dim=1)


@torch.no_grad()
def sample(generator: Generator, schedule: DdimSchedule, prompts: Sequence[str], noise_TNCHW: Tensor) -> Trajectory:
    """Denoise ``noise_TNCHW[0]`` with the noise of each step, and return the whole trajectory.

    Args:
        generator: the policy.
        schedule: its S steps.
        prompts: one per row.
        noise_TNCHW: the noise from ``draw_noise``.
    """
    device = generator.device
    schedule = schedule.to(device)
    condition = generator.encode_prompts(prompts)
    latents = noise_TNCHW[0].to(device)
    stochastic = set(schedule.stochastic)
    visited, log_probabilities = [latents.cpu()], []
    for step in range(len(schedule)):
        steps_N = torch.full((len(prompts),), step, device=device)
        output = generator.predict(latents, schedule.timesteps_S[steps_N], condition)
        mean, std = step_distribution(schedule, steps_N, output, latents)
        if step in stochastic:
            latents = mean + std * noise_TNCHW[step + 1].to(device)
            log_probabilities.append(log_probability(latents, mean, std).cpu())
        else:
            latents = mean
            log_probabilities.append(torch.zeros(len(prompts)))
        visited.append(latents.cpu())
    return Trajectory(torch.stack(visited), torch.stack(log_probabilities), condition)


def generate(
    generator: Generator,
    schedule: DdimSchedule,
    prompts: Sequence[str],
    seed: int,
    batch_size: int,
    number: int = 0,
) -> Tensor:
    """Return one image per prompt (N, 3, H, W). Equal prompts get different images.

    Args:
        generator: the model.
        schedule: its denoising steps.
        prompts: one per image.
        seed: the images of two generators with the same seed and prompts are paired.
        batch_size: images in one pass.
        number: the number of the first image. Its noise depends on the seed and this number.
    """
    generator.check_prompts(prompts)
    images = []
    for first in range(0, len(prompts), batch_size):
        rows = range(first, min(first + batch_size, len(prompts)))
        numbers = range(number + rows.start, number + rows.stop)
        noise = draw_noise(seed, numbers, len(schedule), generator.latent_shape)
        trajectory = sample(generator, schedule, [prompts[row] for row in rows], noise)
        images.append(generator.decode(trajectory.latents_TNCHW[-1]))
    return torch.cat(images)
