"""Supervised fine-tuning: filtered, weighted, with a control of the same size."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.imagegen_models import CPU, LORA, PROMPTS, SFT, dit_generator, random_dit_folder
from tests.helpers.problems import raises
from toolkit.errors import DataError, TrainingError
from toolkit.imagegen.checkpoints import load_tensors, save_tensors
from toolkit.imagegen.generators.ddim import make_schedule
from toolkit.imagegen.generators.generator import Generator, GeneratorSettings, load_generator
from toolkit.imagegen.generators.lora import copy_lora, lora_parameters
from toolkit.imagegen.generators.sampling import generate
from toolkit.imagegen.generators.stable_diffusion import save_tiny_pipeline
from toolkit.imagegen.training.sft import (
    SftImages,
    SftSettings,
    encode_training_images,
    random_control,
    sft_round,
)
from toolkit.imagegen.training.shuffle import shuffled_passes
from toolkit.imagegen.training.update_state import SavedUpdate, dump_state, restore_state, start_update

SETTINGS = SFT


def draw(numbers: Sequence[int]) -> Tensor:
    """Images of one brightness each: bright if the number is even."""
    return torch.stack([torch.full((3, 8, 8), 0.9 if number % 2 == 0 else 0.1) for number in numbers])


POOL = SftImages(draw, tuple(range(40)), PROMPTS * 10, (1.0,) * 40)
BRIGHT = SftImages(draw, tuple(range(0, 40, 2)), PROMPTS * 5, (1.0,) * 20)


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_dit_folder(tmp_path_factory.mktemp("dit"))


def trained(folder: Path, images: SftImages, rounds: int = 3) -> Tensor:
    """Brightness of images after training, paired by prompt and noise."""
    generator = dit_generator(folder)
    state = start_update(generator, SETTINGS.learning_rate)
    encoded = encode_training_images(generator, images, 16)
    for _ in range(rounds):
        sft_round(state, SETTINGS, encoded)
    schedule = make_schedule(generator.scheduler, 6)
    return generate(generator, schedule, list(PROMPTS) * 8, 1, 32).mean((1, 2, 3))


def test_training_on_passed_images_beats_the_control_paired_by_noise(dit: Path) -> None:
    difference = trained(dit, BRIGHT) - trained(dit, random_control(BRIGHT, POOL, seed=0))
    assert float(difference.mean()) > 0.1
    assert float(difference.mean() / (difference.std() / len(difference) ** 0.5)) > 5


def test_weights_select_as_filtering_does(dit: Path) -> None:
    weighted = replace(POOL, weights=tuple(1.0 - number % 2 for number in POOL.numbers))
    difference = trained(dit, weighted) - trained(dit, POOL)
    assert float(difference.mean()) > 0.1
    assert float(difference.mean() / (difference.std() / len(difference) ** 0.5)) > 5


def test_control_has_as_many_distinct_images_of_the_pool_and_one_weight() -> None:
    control = random_control(BRIGHT, POOL, seed=0)
    assert len(set(control.numbers)) == len(BRIGHT.numbers)
    assert set(control.weights) == {1.0}
    assert {number % 2 for number in control.numbers} == {0, 1}
    prompts = dict(zip(POOL.numbers, POOL.prompts, strict=True))
    assert [prompts[number] for number in control.numbers] == list(control.prompts)
    assert control == random_control(BRIGHT, POOL, seed=0) != random_control(BRIGHT, POOL, seed=1)
    with raises(TrainingError, "imagegen.control_images_too_few"):
        random_control(POOL, BRIGHT, seed=0)


def test_only_the_ratio_of_weights_matters(dit: Path) -> None:
    generator = dit_generator(dit)
    weights = ((1,) * 20 + (3,) * 20, (0.1,) * 20 + (0.3,) * 20)
    one, ten = (encode_training_images(generator, replace(POOL, weights=own), 7) for own in weights)
    torch.testing.assert_close(one.weights_N, ten.weights_N)
    assert float(one.weights_N.mean()) == pytest.approx(1)
    assert float(one.weights_N[-1] / one.weights_N[0]) == pytest.approx(3)


def after_one_step(generator: Generator, settings: SftSettings) -> dict[str, Tensor]:
    """LoRA parameters after one step on random images."""
    state = start_update(generator, settings.learning_rate)
    side = 32 if generator.latent_shape[0] == 4 else 8
    random = torch.rand(40, 3, side, side, generator=torch.Generator().manual_seed(0))
    images = replace(POOL, load=lambda numbers: random[list(numbers)])
    sft_round(state, replace(settings, steps_per_round=1), encode_training_images(generator, images, 40))
    return copy_lora(generator.network)


def test_micro_batches_do_not_change_a_step(dit: Path) -> None:
    whole, parts = (after_one_step(dit_generator(dit), replace(SETTINGS, micro_batch=size)) for size in (16, 3))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_lora_factor_of_a_unet_is_trained(tmp_path: Path, prediction_type: str, checkpointing: bool) -> None:
    save_tiny_pipeline(tmp_path, prediction_type=prediction_type)
    settings = GeneratorSettings(str(tmp_path), lora=LORA, gradient_checkpointing=checkpointing, guidance_scale=5.0)
    generator = load_generator(settings, CPU)
    before = copy_lora(generator.network)
    after = after_one_step(generator, replace(SETTINGS, batch_size=4, micro_batch=2, prompt_dropout=0.5))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # With the second factor at zero, the first one has no gradient in the first step, only weight decay.
    assert changed >= {name for name in lora_parameters(generator.network) if "lora_B" in name}


def test_loss_is_that_of_diffusers_targets(dit: Path) -> None:
    """At a zero learning rate the mean loss over many steps is the error of the network's own prediction."""
    generator = dit_generator(dit)
    encoded = encode_training_images(generator, POOL, 40)
    state = start_update(generator, 0.0)
    ours = sft_round(state, replace(SETTINGS, steps_per_round=30, batch_size=64, micro_batch=64), encoded).loss
    random = torch.Generator().manual_seed(9)
    scheduler, losses = generator.scheduler, []
    for _ in range(30):
        rows = torch.randint(40, (64,), generator=random)
        noise, times = torch.randn(64, 1, 8, 8, generator=random), torch.randint(1000, (64,), generator=random)
        clean = encoded.mean_NCHW[rows]
        with torch.no_grad():
            condition = generator.encode_prompts([POOL.prompts[row] for row in rows])
            output = generator.predict(scheduler.add_noise(clean, noise, times), times, condition)
        losses.append(float(((output - scheduler.get_velocity(clean, noise, times)) ** 2).mean()))
    assert ours == pytest.approx(sum(losses) / len(losses), rel=0.03)


def test_every_image_has_its_turn() -> None:
    rows = [row for step in range(10) for row in shuffled_passes(20, 8 * step, 8 * step + 8, seed=0, name="order")]
    assert [sorted(rows[first : first + 20]) for first in range(0, 80, 20)] == [list(range(20))] * 4
    assert rows[:20] != rows[20:40]


def test_no_image_no_weight_or_a_wrong_prompt_is_an_error_before_training(dit: Path) -> None:
    generator = dit_generator(dit)
    none = SftImages(draw, (), (), ())
    for wrong in (none, replace(POOL, weights=(0.0,) * 40), replace(POOL, weights=(-1.0,) * 40)):
        with raises(TrainingError, "imagegen.sft_weights_not_usable"):
            encode_training_images(generator, wrong, 8)
    with raises(DataError, "imagegen.prompt_word_unknown"):
        encode_training_images(generator, replace(POOL, prompts=("mri",) * 40), 8)


def test_stopped_and_resumed_rounds_equal_undisturbed_ones_to_the_bit(dit: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps_per_round=5)

    def begin() -> tuple[Generator, list[object]]:
        return dit_generator(dit), []

    whole, undisturbed = begin()
    state = start_update(whole, settings.learning_rate)
    encoded = encode_training_images(whole, POOL, 16)
    for _ in range(4):
        undisturbed.append(sft_round(state, settings, encoded))
    first, table = begin()
    state = start_update(first, settings.learning_rate)
    table += [sft_round(state, settings, encoded) for _ in range(2)]
    save_tensors(tmp_path / "state.pt", dump_state(state))
    second, _ = begin()
    state = start_update(second, settings.learning_rate)
    restore_state(state, load_tensors(tmp_path / "state.pt", SavedUpdate, ""), tmp_path / "state.pt")
    table += [sft_round(state, settings, encoded) for _ in range(2)]
    assert table == undisturbed
    ours, theirs = copy_lora(second.network), copy_lora(whole.network)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
