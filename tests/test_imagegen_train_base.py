"""The script that trains the shipped base: its loss falls, its file is reproducible, its samples follow the prompt."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.helpers.imagegen_models import CONFIG, CPU
from tests.helpers.optional import defined
from tests.tiny_training.image_generator import BaseSettings, TrainedBase, main, train_base
from toolkit.imagegen.generators.ddim import make_schedule
from toolkit.imagegen.generators.dit import load_dit, save_dit
from toolkit.imagegen.generators.generator import GeneratorSettings, load_generator
from toolkit.imagegen.generators.sampling import generate

SETTINGS = BaseSettings(images=64, steps=150, batch_size=32, warmup_steps=10, learning_rate=5e-3, average_decay=0.95)


@dataclass(frozen=True)
class Square:
    pixels: NDArray[np.float32]
    prompt: str


def draw(seed: int, index: int, size: int) -> Square:
    """A bright or dark image with a little noise."""
    bright = index % 2 == 0
    noise = np.random.default_rng([seed, index]).normal(0, 0.02, (size, size))
    return Square((noise + (0.85 if bright else 0.15)).astype(np.float32), "bright image" if bright else "dark image")


@pytest.fixture(scope="module")
def trained() -> TrainedBase:
    return train_base(draw, SETTINGS, CONFIG)


@pytest.mark.slow
def test_loss_falls_and_samples_follow_the_prompt(trained: TrainedBase, tmp_path: Path) -> None:
    assert np.mean(trained.losses[-20:]) < 0.5 * np.mean(trained.losses[:20])
    save_dit(tmp_path, trained.model)
    generator = load_generator(GeneratorSettings(str(tmp_path)), CPU)
    images = generate(generator, make_schedule(generator.scheduler, 10), ["bright image", "dark image"] * 8, 0, 16)
    levels = images.mean((1, 2, 3))
    assert float(levels[0::2].min()) > 0.6
    assert float(levels[1::2].max()) < 0.4


def test_the_vocabulary_is_that_of_the_prompts(trained: TrainedBase) -> None:
    assert trained.model.config.words == ("bright", "dark", "image")


def test_equal_seeds_give_equal_files_and_other_seeds_others(tmp_path: Path) -> None:
    short = replace(SETTINGS, steps=3)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_dit(tmp_path / name, train_base(draw, replace(short, seed=seed), CONFIG).model)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.slow
def test_command_line_writes_model_and_image(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "base"), "--steps", "2", "--images", "80", "--seed", "3"]
    main([*arguments, "--draw", "test_imagegen_train_base:draw", "--grid", str(tmp_path / "grid.png")])
    model = load_dit(tmp_path / "base")
    assert model.config.image_size == 32
    assert sum(path.stat().st_size for path in (tmp_path / "base").iterdir()) < 5e6
    assert defined(cv2.imread(str(tmp_path / "grid.png"))).shape == (2 * 128, 10 * 128, 3)
    assert not any(parameter.dtype != torch.float32 for parameter in model.parameters())


def test_the_shipped_files_are_those_that_the_documented_figures_are_of() -> None:
    folder = Path(__file__).resolve().parents[1] / "toolkit" / "imagegen"
    digests = {
        "tiny_base/model.safetensors": "7a42635b4e680f19a89a43ebbf705f168d301070f5e72e6147e77de3fe4f1101",
        "ratings/oracle.safetensors": "01eb6394c9d12322a9129b78f31cf893ade8659dd3a2f4c5516007e8b6a65ddd",
    }
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in digests}
    assert found == digests, "Train again with tests/tiny_training, and renew the documented figures"
