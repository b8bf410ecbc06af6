"""DDIM steps equal diffusers' scheduler, and their log-probabilities torch's normal distribution."""

import pytest
import torch

from tests.helpers.problems import raises
from toolkit.errors import ModelError
from toolkit.imagegen.generators.ddim import (
    DdimSchedule,
    kl_divergence,
    log_probability,
    make_schedule,
    make_scheduler,
    step_distribution,
)

SD15 = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
"""The scheduler that Stable Diffusion 1.5 ships. It has no clip_sample."""

SD21 = SD15 | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "clip_sample": False}

CONFIGS: dict[str, tuple[dict[str, object], bool]] = {
    "sd15": (SD15, False),
    "sd15 clipped": (SD15, True),
    "sd21": (SD21, False),
    "alpha to one": (SD15 | {"set_alpha_to_one": True}, False),
    "linspace": ({"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"}, True),
    "trailing": ({"beta_schedule": "linear", "timestep_spacing": "trailing"}, False),
    "zero terminal": (SD21 | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, False),
}


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [7, 20, 50])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_step_equals_the_scheduler_to_the_bit(name: str, steps: int) -> None:
    config, clip = CONFIGS[name]
    scheduler = make_scheduler(config, clip_sample=clip)
    schedule = make_schedule(scheduler, steps)
    for position, timestep in enumerate(scheduler.timesteps):
        sample, output, noise = (randn(2, 3, 4, 4, seed=3 * position + i) for i in range(3))
        theirs = scheduler.step(output, timestep, sample, eta=1.0, variance_noise=noise).prev_sample
        mean, std = step_distribution(schedule, torch.full((2,), position), output, sample)
        assert schedule.timesteps_S[position] == timestep
        ours = mean + std * noise
        assert bool(torch.isfinite(ours).all()), position
        if position or name != "zero terminal":  # There, rounding gives diffusers the root of -1e-8.
            assert torch.equal(ours, theirs), position


@pytest.mark.parametrize("name", CONFIGS)
def test_log_probability_and_kl_equal_torchs_normal(name: str) -> None:
    config, clip = CONFIGS[name]
    schedule = make_schedule(make_scheduler(config, clip_sample=clip), 20)
    for position in schedule.stochastic:
        sample, output, other, value = (randn(2, 3, 4, 4, seed=4 * position + i) for i in range(4))
        steps = torch.full((2,), position)
        mean, std = step_distribution(schedule, steps, output, sample)
        base, _ = step_distribution(schedule, steps, other, sample)
        normal, base_normal = torch.distributions.Normal(mean, std), torch.distributions.Normal(base, std)
        assert torch.equal(log_probability(value, mean, std), normal.log_prob(value).mean((1, 2, 3)))
        kl = torch.distributions.kl_divergence(normal, base_normal).mean((1, 2, 3))
        torch.testing.assert_close(kl_divergence(mean, base, std), kl)


def test_rows_at_different_steps_equal_the_rows_alone() -> None:
    schedule = make_schedule(make_scheduler(SD15, clip_sample=False), 20)
    sample, output = randn(3, 1, 4, 4, seed=0), randn(3, 1, 4, 4, seed=1)
    steps = torch.tensor([0, 19, 7])
    mean, std = step_distribution(schedule, steps, output, sample)
    for row in range(3):
        one = slice(row, row + 1)
        mean_alone, std_alone = step_distribution(schedule, steps[one], output[one], sample[one])
        assert torch.equal(mean[one], mean_alone)
        assert torch.equal(std[one], std_alone)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [("sd15", []), ("sd21", []), ("alpha to one", [19]), ("linspace", [19]), ("trailing", [19])],
)
def test_steps_of_zero_variance_are_left_out(name: str, left_out: list[int]) -> None:
    config, clip = CONFIGS[name]
    schedule = make_schedule(make_scheduler(config, clip_sample=clip), 20)
    assert sorted(set(range(20)) - set(schedule.stochastic)) == left_out
    assert bool(torch.isfinite(schedule.std_S).all())


def test_last_step_of_stable_diffusion_has_the_known_deviation() -> None:
    schedule = make_schedule(make_scheduler(SD15, clip_sample=False), 20)
    assert float(schedule.std_S[-1]) == pytest.approx(0.0206, abs=1e-4)


def test_clipping_follows_the_argument_if_the_config_lacks_it() -> None:
    assert make_schedule(make_scheduler(SD15, clip_sample=False), 5).clip_range is None
    assert make_schedule(make_scheduler(SD15, clip_sample=True), 5).clip_range == 1.0


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"thresholding": True}, "imagegen.scheduler_thresholds"),
        ({"prediction_type": "sample"}, "imagegen.prediction_type_unsupported"),
    ],
)
def test_a_scheduler_without_a_gaussian_step_is_rejected(wrong: dict[str, object], code: str) -> None:
    with raises(ModelError, code):
        make_scheduler(SD15 | wrong, clip_sample=False)


def test_noise_prediction_from_zero_signal_is_rejected() -> None:
    config = SD15 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with raises(ModelError, "imagegen.zero_terminal_snr_without_velocity"):
        make_schedule(make_scheduler(config, clip_sample=False), 10)


def test_every_number_of_steps_gives_a_schedule_or_a_clear_error() -> None:
    for config in (SD15, CONFIGS["linspace"][0], CONFIGS["trailing"][0]):
        scheduler = make_scheduler(config, clip_sample=False)
        made = 0
        for steps in (0, 1, 2, 499, 500, 501, 1000, 1001):
            try:
                schedule = make_schedule(scheduler, steps)
            except ModelError:
                continue
            made += 1
            assert len(schedule) == steps
            assert bool(torch.isfinite(schedule.std_S).all())
        assert made >= 4


def test_schedule_moves_as_a_whole() -> None:
    schedule = make_schedule(make_scheduler(SD15, clip_sample=False), 5)
    moved = schedule.to(torch.device("meta"))
    assert isinstance(moved, DdimSchedule)
    assert {moved.alpha_S.device.type, moved.std_S.device.type, moved.timesteps_S.device.type} == {"meta"}
