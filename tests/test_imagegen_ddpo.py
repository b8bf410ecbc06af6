"""DDPO: it learns, its ratios begin at 1, its gradients reach the LoRA, and it resumes to the bit."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.imagegen_models import (
    CONFIG,
    CPU,
    DDPO,
    LORA,
    PROMPTS,
    ddpo_round,
    dit_generator,
    random_dit_folder,
    randomise_lora,
)
from tests.helpers.problems import raises
from toolkit.errors import DataError, RewardError, TrainingError
from toolkit.imagegen.checkpoints import load_tensors, save_tensors
from toolkit.imagegen.generators.ddim import make_schedule
from toolkit.imagegen.generators.generator import Generator, GeneratorSettings, load_generator
from toolkit.imagegen.generators.lora import copy_lora, lora_parameters
from toolkit.imagegen.generators.sampling import generate
from toolkit.imagegen.generators.stable_diffusion import save_tiny_pipeline
from toolkit.imagegen.training import ddpo
from toolkit.imagegen.training.ddpo import (
    DdpoRound,
    DdpoSettings,
    Rollout,
    choose_prompts,
    group_advantages,
    roll_out,
    update_policy,
)
from toolkit.imagegen.training.update_state import (
    SavedUpdate,
    StepOutcome,
    UpdateState,
    dump_state,
    restore_state,
    start_update,
)

SETTINGS = DDPO


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_dit_folder(tmp_path_factory.mktemp("dit"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    save_tiny_pipeline(folder)
    return folder


def start(generator: Generator, settings: DdpoSettings = SETTINGS) -> UpdateState:
    return start_update(generator, settings.learning_rate)


def tiny_generator(folder: Path, **changes: object) -> Generator:
    return load_generator(GeneratorSettings(str(folder), lora=LORA, **changes), CPU)  # type: ignore[arg-type]


def test_a_few_rounds_raise_a_toy_reward_paired_by_prompt_and_noise(dit: Path) -> None:
    settings = replace(SETTINGS, learning_rate=1e-2)
    state = start(dit_generator(dit), settings)
    schedule = make_schedule(state.generator.scheduler, SETTINGS.denoising_steps)
    prompts = list(PROMPTS) * 16
    before = brightness(generate(state.generator, schedule, prompts, 99, 64), prompts)
    rounds = [ddpo_round(state, settings, PROMPTS, brightness) for _ in range(12)]
    after = brightness(generate(state.generator, schedule, prompts, 99, 64), prompts)
    difference = after - before
    assert float(difference.mean() / (difference.std() / len(prompts) ** 0.5)) > 10
    assert float(difference.mean()) > float(before.std())
    assert rounds[0].kl_to_base == 0 < rounds[-1].kl_to_base
    assert [one.round for one in rounds] == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_ratios_of_the_first_pass_are_1_in_every_precision(tiny: Path, precision: str) -> None:
    settings = replace(SETTINGS, generations=2, denoising_steps=2, micro_batch=4, clip_range=1e-4, prompts_per_round=2)
    state = start(tiny_generator(tiny, precision=precision, guidance_scale=2.0))
    for _ in range(2):
        measured = ddpo_round(state, settings, PROMPTS, brightness)
        assert measured.first_ratio_deviation < 1e-6
        assert measured.optimizer_steps + measured.skipped_steps == settings.minibatches


def test_a_rollout_of_other_parameters_is_an_error(dit: Path) -> None:
    state = start(dit_generator(dit))
    rollout = roll_out(state.generator, SETTINGS, PROMPTS, brightness, 0)
    randomise_lora(state.generator.network, 0.3)
    before = copy_lora(state.generator.network)
    with raises(TrainingError, "imagegen.first_ratio_not_one") as caught:
        update_policy(state, SETTINGS, rollout)
    assert isinstance(caught.problem.value, float)
    assert caught.problem.value > SETTINGS.clip_range / 10
    assert all(torch.equal(before[name], value) for name, value in copy_lora(state.generator.network).items())


@pytest.mark.slow
def test_images_that_the_gate_holds_back_are_never_reinforced(dit: Path) -> None:
    settings = replace(SETTINGS, minibatches=1)
    state = start(dit_generator(dit), settings)
    rollout = roll_out(state.generator, settings, PROMPTS, brightness, 0)
    advantages_N = group_advantages(rollout.rewards_N, rollout.prompts, settings.advantage_clip).values_N
    for passed_N in (torch.zeros(32).bool(), torch.arange(32) % 2 == 0, torch.ones(32).bool()):
        state = start(dit_generator(dit), settings)
        measured = update_policy(state, settings, replace(rollout, passed_N=passed_N))
        # The ratio is 1 in the only optimizer step, so that the loss is minus the mean advantage.
        kept = torch.where(passed_N, advantages_N, advantages_N.clamp_max(0))
        assert measured.loss == pytest.approx(-float(kept.mean()), abs=1e-6)


def gradients(generator: Generator, settings: DdpoSettings, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The LoRA gradients of one optimizer step, which is not taken."""
    randomise_lora(generator.network)
    state = start(generator)
    caught: dict[str, Tensor] = {}

    def catch(state: UpdateState, max_norm: float) -> StepOutcome:
        parameters = lora_parameters(state.generator.network)
        caught.update({name: value.grad.clone() for name, value in parameters.items() if value.grad is not None})
        return StepOutcome(0.0, skipped=False)

    monkeypatch.setattr(ddpo, "optimizer_step", catch)
    ddpo_round(state, settings, PROMPTS, brightness)
    assert caught.keys() == lora_parameters(generator.network).keys()
    return caught


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_with_a_kl_penalty_leaves_every_gradient(
    tiny: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(
        SETTINGS, generations=2, denoising_steps=2, micro_batch=4, minibatches=1, kl_weight=0.5, prompts_per_round=2
    )
    plain = gradients(tiny_generator(tiny, precision=precision), settings, monkeypatch)
    generator = tiny_generator(tiny, precision=precision, gradient_checkpointing=True)
    assert generator.network.is_gradient_checkpointing
    recomputed = gradients(generator, settings, monkeypatch)
    for name, gradient in plain.items():
        assert float(gradient.abs().max()) > 0, name
        # The adapter was switched off and on before: a recomputation without it would leave exactly 0.
        assert float(recomputed[name].abs().max()) > 0, name
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-3)


def test_gradient_equals_that_of_the_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At ratio 1 the gradient is that of -mean(advantage * log-probability), here from torch's own distributions."""
    settings = replace(SETTINGS, minibatches=1, micro_batch=32)
    generator = dit_generator(random_dit_folder(tmp_path, replace(CONFIG, beta_schedule="linear")))
    ours = gradients(generator, settings, monkeypatch)
    monkeypatch.undo()
    rollout = roll_out(generator, settings, PROMPTS, brightness, 0)
    advantages = group_advantages(rollout.rewards_N, rollout.prompts, settings.advantage_clip).values_N
    scheduler = generator.scheduler
    schedule = make_schedule(scheduler, settings.denoising_steps)
    chunk, total = rollout.chunks[0], torch.tensor(0.0)
    for step in schedule.stochastic:
        time = schedule.timesteps_S[step]
        before, after = chunk.latents_TNCHW[step], chunk.latents_TNCHW[step + 1]
        output = generator.predict(before, time.expand(len(before)), chunk.condition)
        mean = scheduler.step(output, time, before, eta=1.0, variance_noise=torch.zeros_like(before)).prev_sample
        normal = torch.distributions.Normal(mean, schedule.std_S[step])
        total = total - (advantages * normal.log_prob(after).mean((1, 2, 3))).mean() / len(schedule.stochastic)
    parameters = lora_parameters(generator.network)
    theirs = torch.autograd.grad(total, list(parameters.values()))
    for name, gradient in zip(parameters, theirs, strict=True):
        torch.testing.assert_close(ours[name], gradient, atol=1e-7, rtol=1e-4)


def test_kl_to_the_base_equals_that_of_torchs_normals(tmp_path: Path) -> None:
    settings = replace(SETTINGS, denoising_steps=4, micro_batch=32)
    state = start(dit_generator(random_dit_folder(tmp_path, replace(CONFIG, beta_schedule="linear"))))
    base = dit_generator(tmp_path)
    randomise_lora(state.generator.network)
    rollout = roll_out(state.generator, settings, PROMPTS, brightness, 0)
    scheduler, chunk = base.scheduler, rollout.chunks[0]
    schedule, total = make_schedule(scheduler, 4), 0.0
    for step in schedule.stochastic:
        normals = []
        for generator in (state.generator, base):
            before, time = chunk.latents_TNCHW[step], schedule.timesteps_S[step]
            with torch.no_grad():
                output = generator.predict(before, time.expand(len(before)), chunk.condition)
            mean = scheduler.step(output, time, before, eta=1.0, variance_noise=torch.zeros_like(before)).prev_sample
            normals.append(torch.distributions.Normal(mean, schedule.std_S[step]))
        total += float(torch.distributions.kl_divergence(*normals).mean())
    assert update_policy(state, settings, rollout).kl_to_base == pytest.approx(total, rel=1e-3)


def test_advantages_are_normalised_within_the_images_of_a_prompt() -> None:
    rewards = torch.tensor([0.1, 0.7, 0.4, 0.9, 0.9, 0.3])
    prompts = ["a", "a", "b", "c", "c", "b"]
    found = group_advantages(rewards, prompts, 5.0)
    assert (found.zero_variance_groups, found.groups, found.clipped) == (1, 3, 0)
    for prompt in "abc":
        rows = [row for row, own in enumerate(prompts) if own == prompt]
        group = rewards[rows].numpy()
        expected = (group - group.mean()) / (group.std() + 1e-4)
        torch.testing.assert_close(found.values_N[rows], torch.from_numpy(expected))
    found = group_advantages(rewards, prompts, 0.5)
    assert float(found.values_N.abs().max()) == 0.5
    assert found.clipped == pytest.approx(4 / 6)


def test_every_chunk_and_step_is_used_once_in_each_epoch(dit: Path) -> None:
    schedule = make_schedule(dit_generator(dit).scheduler, 5)
    for wanted, count in ((1, 1), (4, 4), (7, 7), (100, 12)):
        settings = replace(SETTINGS, minibatches=wanted, epochs=2)
        parts = list(ddpo._minibatches(settings, schedule, 3, 0))
        assert len(parts) == 2 * count
        assert all(parts)
        epochs = [[pair for part in half for pair in part] for half in (parts[:count], parts[count:])]
        assert [sorted(epoch) for epoch in epochs] == [[(c, s) for c in range(3) for s in schedule.stochastic]] * 2
        assert epochs[0] != epochs[1]


def test_every_prompt_has_its_turn_and_equal_rounds_choose_alike() -> None:
    settings = replace(SETTINGS, prompts_per_round=3, generations=2)
    prompts = [f"p{number}" for number in range(6)]
    two_rounds = [choose_prompts(prompts, settings, finished) for finished in (0, 1)]
    assert sorted(set(two_rounds[0] + two_rounds[1])) == prompts
    assert all(chosen[0::2] == chosen[1::2] for chosen in two_rounds)
    assert choose_prompts(prompts, settings, 1) == two_rounds[1]
    assert choose_prompts(prompts, replace(settings, seed=1), 0) != two_rounds[0]


def test_a_round_of_equal_rewards_changes_nothing_but_is_counted(dit: Path) -> None:
    state = start(dit_generator(dit), replace(SETTINGS, learning_rate=1.0))
    measured = ddpo_round(state, SETTINGS, PROMPTS, lambda images, _: torch.full((len(images),), 0.5))
    assert measured.zero_variance_groups == measured.groups == 4
    assert measured.gradient_norm == measured.clipped_advantages == 0


def test_clipped_advantages_are_counted(dit: Path) -> None:
    def one_in_eight(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([1.0, *[0.0] * 7] * 4)

    settings = replace(SETTINGS, advantage_clip=2.0)  # The one is at +2.6 and the others at -0.4.
    assert ddpo_round(start(dit_generator(dit)), settings, PROMPTS, one_in_eight).clipped_advantages == 1 / 8
    state = start(dit_generator(dit), settings)
    rollout = roll_out(state.generator, settings, PROMPTS, one_in_eight, 0)
    # The gate lowers every clipped advantage to 0, which changes no count.
    gated = update_policy(state, settings, replace(rollout, passed_N=torch.zeros(32).bool()))
    assert gated.clipped_advantages == 1 / 8


@pytest.mark.parametrize("wrong", [torch.tensor([1.0]), torch.full((32,), float("nan"))])
def test_rewards_that_are_not_one_finite_number_per_image_are_an_error(dit: Path, wrong: Tensor) -> None:
    with raises(RewardError, "imagegen.rewards_not_finite"):
        ddpo_round(start(dit_generator(dit)), SETTINGS, PROMPTS, lambda *_: wrong)


def test_a_prompt_that_the_generator_cannot_take_is_an_error_before_any_image(dit: Path) -> None:
    def never(images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise AssertionError

    with raises(DataError, "imagegen.prompt_word_unknown"):
        ddpo_round(start(dit_generator(dit)), SETTINGS, [*PROMPTS, "mri"], never)


def test_kl_penalty_holds_the_policy_near_the_base(dit: Path) -> None:
    def run(kl_weight: float) -> DdpoRound:
        settings = replace(SETTINGS, kl_weight=kl_weight)
        state = start(dit_generator(dit))
        return [ddpo_round(state, settings, PROMPTS, brightness) for _ in range(5)][-1]

    assert 0 < run(30.0).kl_to_base < 0.7 * run(0.0).kl_to_base


@pytest.mark.slow
def test_float16_overflow_skips_the_step_and_lowers_the_scale(tiny: Path) -> None:
    settings = replace(SETTINGS, generations=2, denoising_steps=2, micro_batch=4, minibatches=1, prompts_per_round=2)
    state = start(tiny_generator(tiny, precision="float16"))
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 1e30})
    before = copy_lora(state.generator.network)
    measured = ddpo_round(state, settings, PROMPTS, brightness)
    assert (measured.optimizer_steps, measured.skipped_steps) == (0, 1)
    assert state.scaler.get_scale() < 1e30
    assert all(torch.equal(before[name], value) for name, value in copy_lora(state.generator.network).items())
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 65536.0})
    assert ddpo_round(state, settings, PROMPTS, brightness).optimizer_steps == 1


def test_float32_gradients_that_are_not_finite_are_an_error(dit: Path) -> None:
    state = start(dit_generator(dit))
    rollout = roll_out(state.generator, SETTINGS, PROMPTS, brightness, 0)
    broken = Rollout(rollout.prompts, rollout.chunks, rollout.images_NCHW, rollout.rewards_N * 1e38 * 10)
    with raises(TrainingError, "imagegen.gradients_not_finite"):
        update_policy(state, SETTINGS, broken)


def test_stopped_and_resumed_rounds_equal_undisturbed_ones_to_the_bit(dit: Path, tmp_path: Path) -> None:
    whole = start(dit_generator(dit))
    undisturbed = [ddpo_round(whole, SETTINGS, PROMPTS, brightness) for _ in range(4)]

    first = start(dit_generator(dit))
    table = [ddpo_round(first, SETTINGS, PROMPTS, brightness) for _ in range(2)]
    save_tensors(tmp_path / "state.pt", dump_state(first))
    torch.randn(3)
    second = start(dit_generator(dit, seed=5))
    restore_state(second, load_tensors(tmp_path / "state.pt", SavedUpdate, ""), tmp_path / "state.pt")
    table += [ddpo_round(second, SETTINGS, PROMPTS, brightness) for _ in range(2)]

    assert table == undisturbed
    ours, theirs = copy_lora(second.generator.network), copy_lora(whole.generator.network)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_state_of_another_base_is_rejected(dit: Path, tmp_path: Path) -> None:
    other = random_dit_folder(tmp_path, replace(CONFIG, layers=1))
    with raises(TrainingError, "imagegen.checkpoint_base_differs") as caught:
        restore_state(start(dit_generator(dit)), dump_state(start(dit_generator(other))), tmp_path / "state.pt")
    assert caught.problem.place.endswith("state.pt")
