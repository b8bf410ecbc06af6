"""Train the DiT that ships as the base of the tiny recipe.

    python -m tests.tiny_training.image_generator --out FOLDER

The same seed, thread count and torch version give the same file. Training images are drawn, so no licence but the
toolkit's applies. Most of them are degraded: the base has something to unlearn.
"""

import argparse
import copy
import importlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.imagegen.generators.ddim import make_schedule, make_scheduler
from toolkit.imagegen.generators.dit import Dit, DitConfig, encode_words, load_dit_generator, save_dit, split_words
from toolkit.imagegen.generators.generator import GeneratorSettings
from toolkit.imagegen.generators.sampling import generate

LOG = logging.getLogger("toolkit")

DRAW = "toolkit.imagegen.ratings.synthetic_images:synthetic_image"


class Drawn(Protocol):
    """A drawn image: (side, side) pixels in [0, 1], and its prompt."""

    @property
    def pixels(self) -> NDArray[np.float32]:
        """Return the pixels."""

    @property
    def prompt(self) -> str:
        """Return the prompt."""


class Draw(Protocol):
    """Draws image number ``index`` of a series. The same arguments give the same image."""

    def __call__(self, seed: int, index: int, size: int) -> Drawn:
        """Return the image."""


@dataclass(frozen=True, slots=True)
class BaseSettings:
    """Settings of the training.

    Attributes:
        images: distinct images that are drawn.
        steps: optimizer steps.
        batch_size: images of a step.
        learning_rate: highest rate of AdamW, after a linear warmup and before a cosine decay to zero.
        warmup_steps: steps of the warmup.
        prompt_dropout: fraction of prompts that are replaced by the empty prompt.
        average_decay: of the exponential moving average of the parameters, which is saved.
        seed: of parameters, images, order and noise.
    """

    images: int = 20_000
    steps: int = 6000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    prompt_dropout: float = 0.1
    average_decay: float = 0.999
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TrainedBase:
    """The averaged model, and the loss of each step."""

    model: Dit
    losses: tuple[float, ...]


def train_base(draw: Draw, settings: BaseSettings, config: DitConfig | None = None) -> TrainedBase:
    """Draw the images and train a DiT on them.

    Args:
        draw: draws an image and its prompt.
        settings: of the training.
        config: shape of the model. Its words are replaced by those of the prompts.
    """
    size = (config or DitConfig(())).image_size
    drawn = [draw(settings.seed, index, size) for index in range(settings.images)]
    config = _with_words(config or DitConfig(()), [one.prompt for one in drawn])
    pixels = 2 * torch.from_numpy(np.stack([one.pixels for one in drawn])).float()[:, None] - 1
    words = encode_words(config, [one.prompt for one in drawn])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Dit(config)
    return _fit(model, pixels.expand(-1, config.channels, -1, -1), words, settings)


def save_grid(path: Path, images_NCHW: Tensor, columns: int) -> None:
    """Save images as one image, enlarged four times, ``columns`` in a row."""
    rows = [torch.cat(list(row), dim=2) for row in images_NCHW.split(columns)]
    grid = (torch.cat(rows, dim=1) * 255).round().byte().permute(1, 2, 0).numpy()
    large = cv2.resize(grid, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(path), cv2.cvtColor(large, cv2.COLOR_RGB2BGR))


def sample_grid(folder: Path, prompts: Sequence[str], columns: int, path: Path) -> None:
    """Save an image with ``columns`` samples of each prompt, one prompt per row."""
    generator = load_dit_generator(GeneratorSettings(str(folder)), torch.device("cpu"))
    schedule = make_schedule(generator.scheduler, 20)
    repeated = [prompt for prompt in prompts for _ in range(columns)]
    save_grid(path, generate(generator, schedule, repeated, seed=0, batch_size=64), columns)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.tiny_training.image_generator", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, default=BaseSettings().steps)
    parser.add_argument("--images", type=int, default=BaseSettings().images)
    parser.add_argument("--seed", type=int, default=BaseSettings().seed)
    parser.add_argument("--draw", default=DRAW, metavar="MODULE:FUNCTION", help="draws the images")
    parser.add_argument("--grid", type=Path, help="image of samples of each prompt")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    module, _, name = chosen.draw.partition(":")
    draw: Draw = getattr(importlib.import_module(module), name)
    settings = BaseSettings(images=chosen.images, steps=chosen.steps, seed=chosen.seed)
    trained = train_base(draw, settings)
    save_dit(chosen.out, trained.model)
    LOG.info("Saved the model to %s.", chosen.out)
    if chosen.grid:
        side = trained.model.config.image_size
        prompts = {draw(settings.seed, index, side).prompt: None for index in range(200)}
        sample_grid(chosen.out, sorted(prompts), 10, chosen.grid)


def _with_words(config: DitConfig, prompts: Sequence[str]) -> DitConfig:
    return replace(config, words=tuple(sorted({word for prompt in set(prompts) for word in split_words(prompt)})))


def _fit(model: Dit, pixels: Tensor, words: Tensor, settings: BaseSettings) -> TrainedBase:
    scheduler = make_scheduler(model.config.scheduler, clip_sample=False)
    velocity = model.config.prediction_type == "v_prediction"
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    random = torch.Generator().manual_seed(settings.seed)
    losses = []
    for step in range(settings.steps):
        rows = torch.randint(len(pixels), (settings.batch_size,), generator=random)
        noise = torch.randn(pixels[rows].shape, generator=random)
        times = torch.randint(scheduler.config.num_train_timesteps, (settings.batch_size,), generator=random)
        with_prompt = torch.rand(settings.batch_size, 1, generator=random) >= settings.prompt_dropout
        target = scheduler.get_velocity(pixels[rows], noise, times) if velocity else noise
        output = model(scheduler.add_noise(pixels[rows], noise, times), times, words[rows] * with_prompt)
        loss = ((output - target) ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        _average(average, model, min(settings.average_decay, (step + 1) / (step + 10)))
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            LOG.info("step %d: loss %.4f", step + 1, sum(losses[-100:]) / 100)
    return TrainedBase(average.eval(), tuple(losses))


@torch.no_grad()
def _average(average: Dit, model: Dit, decay: float) -> None:
    """Move the average towards the model. The decay begins low, so that the initial parameters are soon forgotten."""
    for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(parameter, 1 - decay)


def _rate(step: int, settings: BaseSettings) -> float:
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return (1 + math.cos(math.pi * done)) / 2


if __name__ == "__main__":
    main()
