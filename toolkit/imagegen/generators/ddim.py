"""DDIM sampling (eta 1) as a Gaussian policy: mean, standard deviation and log-probability of every denoising step.

The formulas are those of ``diffusers.DDIMScheduler.step(eta=1)``, in float32. One difference to the paper on denoising
diffusion policy optimisation (DDPO): steps of zero variance are left out of the policy, because their density is
undefined. With Stable Diffusion's own scheduler (``set_alpha_to_one`` false) the last step has a positive variance.
In this file, "step" is a denoising step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from toolkit.errors import ModelError

if TYPE_CHECKING:
    from diffusers import DDIMScheduler


Prediction = Literal["epsilon", "v_prediction"]

SMALLEST_STD = 1e-4
"""A step below it counts as one of zero variance: its log-probability would be divided by almost nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class DdimSchedule:
    """The denoising steps of one sampler, from pure noise to the image (S steps, float32).

    Attributes:
        timesteps_S: training timestep of each step, for the network.
        alpha_S: cumulative product of alphas at the step's timestep.
        alpha_previous_S: the same at the timestep that the step leads to.
        std_S: standard deviation of the step.
        prediction: the quantity that the network predicts.
        clip_range: the predicted clean sample is clipped to [-clip_range, clip_range], or None.
    """

    timesteps_S: Tensor
    alpha_S: Tensor
    alpha_previous_S: Tensor
    std_S: Tensor
    prediction: Prediction
    clip_range: float | None

    def __len__(self) -> int:
        return len(self.timesteps_S)

    @property
    def stochastic(self) -> tuple[int, ...]:
        """The positions of the steps that have a density."""
        return tuple(torch.nonzero(self.std_S > SMALLEST_STD).flatten().tolist())

    def to(self, device: torch.device) -> "DdimSchedule":
        """Return the schedule with its tensors on ``device``."""
        return replace(
            self,
            timesteps_S=self.timesteps_S.to(device),
            alpha_S=self.alpha_S.to(device),
            alpha_previous_S=self.alpha_previous_S.to(device),
            std_S=self.std_S.to(device),
        )


def make_scheduler(
    config: Mapping[str, object], *, clip_sample: bool, prediction: Prediction | None = None
) -> "DDIMScheduler":
    """Return the DDIM scheduler of a pipeline whose own scheduler (PNDM, for example) has ``config``.

    Args:
        config: the configuration of any diffusers scheduler.
        clip_sample: whether the predicted clean sample is clipped. It is explicit because DDIM's default is true, a
            PNDM configuration does not hold it, and clipping changes the log-probability.
        prediction: replaces the configuration's own, if it is wrong.

    Raises:
        ModelError: the configuration has dynamic thresholding, or predicts neither noise nor velocity.
    """
    from diffusers import DDIMScheduler

    changes: dict[str, object] = {"clip_sample": clip_sample}
    if prediction is not None:
        changes["prediction_type"] = prediction
    scheduler = DDIMScheduler.from_config(dict(config), **changes)
    if scheduler.config.thresholding:
        raise ModelError(
            "imagegen.scheduler_thresholds",
            "dynamic thresholding must be off, because it is not part of the log-probability",
            place="scheduler_config.json: thresholding",
            value=True,
            remedy='Set "thresholding": false.',
        )
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ModelError(
            "imagegen.prediction_type_unsupported",
            "the network must predict epsilon or v_prediction",
            place="scheduler_config.json: prediction_type",
            value=scheduler.config.prediction_type,
            remedy="Choose another base model.",
        )
    return cast("DDIMScheduler", scheduler)


def make_schedule(scheduler: "DDIMScheduler", steps: int) -> DdimSchedule:
    """Return the ``steps`` denoising steps of ``scheduler`` at eta 1. The scheduler's own timesteps are set, too.

    Raises:
        ModelError: the scheduler cannot take this number of steps, or the schedule begins at a signal-to-noise ratio of
            zero and the network predicts noise, from which no clean sample follows.
    """
    timesteps_S = _timesteps(scheduler, steps)
    alphas_T = scheduler.alphas_cumprod.float()
    previous_S = timesteps_S - scheduler.config.num_train_timesteps // steps
    final = torch.as_tensor(scheduler.final_alpha_cumprod, dtype=torch.float32)
    alpha_S = alphas_T[timesteps_S]
    alpha_previous_S = torch.where(previous_S >= 0, alphas_T[previous_S.clamp(min=0)], final)
    if scheduler.config.prediction_type == "epsilon" and bool((alpha_S == 0).any()):
        raise ModelError(
            "imagegen.zero_terminal_snr_without_velocity",
            "a schedule with a terminal signal-to-noise ratio of zero must be used with v_prediction",
            place="scheduler_config.json: rescale_betas_zero_snr",
            value=scheduler.config.prediction_type,
            remedy="Set rescale_betas_zero_snr to false.",
        )
    variance_S = (1 - alpha_previous_S) / (1 - alpha_S) * (1 - alpha_S / alpha_previous_S)
    return DdimSchedule(
        timesteps_S,
        alpha_S,
        alpha_previous_S,
        variance_S ** (0.5),
        scheduler.config.prediction_type,
        float(scheduler.config.clip_sample_range) if scheduler.config.clip_sample else None,
    )


def step_distribution(
    schedule: DdimSchedule, steps_N: Tensor, output_NCHW: Tensor, sample_NCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean (N, C, H, W) and standard deviation (N, 1, 1, 1) of the next, less noisy sample.

    Args:
        schedule: the sampler, on the device of the samples.
        steps_N: position of each row's step in the schedule. Rows may be at different steps.
        output_NCHW: the prediction of the network for ``sample_NCHW``.
        sample_NCHW: the sample before the step.
    """
    output_NCHW, sample_NCHW = output_NCHW.float(), sample_NCHW.float()
    alpha, previous, std = (
        values_S[steps_N].view(-1, 1, 1, 1)
        for values_S in (schedule.alpha_S, schedule.alpha_previous_S, schedule.std_S)
    )
    beta = 1 - alpha
    if schedule.prediction == "epsilon":
        clean = (sample_NCHW - beta ** (0.5) * output_NCHW) / alpha ** (0.5)
        noise = output_NCHW
    else:
        clean = (alpha**0.5) * sample_NCHW - (beta**0.5) * output_NCHW
        noise = (alpha**0.5) * output_NCHW + (beta**0.5) * sample_NCHW
    if schedule.clip_range is not None:
        clean = clean.clamp(-schedule.clip_range, schedule.clip_range)
    # At a signal-to-noise ratio of zero, rounding makes the difference negative, and diffusers returns NaN.
    direction = (1 - previous - std**2).clamp(min=0) ** (0.5) * noise
    return previous ** (0.5) * clean + direction, std


def log_probability(value_NCHW: Tensor, mean_NCHW: Tensor, std_N111: Tensor) -> Tensor:
    """Return the Gaussian log-density of each row (N), averaged over its dimensions.

    The average, not the sum, keeps the clip range of the ratio independent of the image size, as in DDPO's code.
    The standard deviation must be positive.
    """
    variance = std_N111**2
    density = -((value_NCHW - mean_NCHW) ** 2) / (2 * variance) - std_N111.log() - math.log(math.sqrt(2 * math.pi))
    return density.flatten(1).mean(1)


def kl_divergence(mean_NCHW: Tensor, base_mean_NCHW: Tensor, std_N111: Tensor) -> Tensor:
    """Return the KL divergence (N) of two steps with one standard deviation, averaged over dimensions, in nats."""
    return ((mean_NCHW - base_mean_NCHW) ** 2 / (2 * std_N111**2)).flatten(1).mean(1)


def _timesteps(scheduler: "DDIMScheduler", steps: int) -> Tensor:
    """Return the timesteps of a sampler, from the noisiest.

    Not every number of steps is possible: with an offset the first timestep can be after the last one of training,
    and "trailing" may round to one timestep too many.
    """
    total: int = scheduler.config.num_train_timesteps
    if 1 <= steps <= total:
        scheduler.set_timesteps(steps)
        timesteps_S: Tensor = scheduler.timesteps.cpu().long()
        if len(timesteps_S) == steps and int(timesteps_S.min()) >= 0 and int(timesteps_S.max()) < total:
            return timesteps_S
    raise ModelError(
        "imagegen.denoising_steps_not_distinct",
        "every denoising step must have a training timestep of its own",
        place="imagegen.generator.steps",
        value=steps,
        remedy="Use 20 to 50.",
    )
