"""Train the oracle that ships with the package: ``python -m tests.tiny_training.rating_oracle``.

The same seed, thread count and torch version give the same file. Its renders are a series of their own: no run draws
them, and the base of the tiny recipe and the judge never see them.
"""

import argparse
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from toolkit.imagegen.ratings.oracle import FINDINGS, ORACLE_FILE, SIDE, OracleNetwork
from toolkit.imagegen.ratings.synthetic_images import PROMPTS, SyntheticImage, synthetic_image

LOG = logging.getLogger("toolkit")
SERIES = 9_000_000_019
"""Seed of the renders, larger than any ``run.seed``."""
HELD_OUT = 1000


@dataclass(frozen=True, slots=True)
class OracleSettings:
    """Renders, optimizer steps, batch, learning rate and seed."""

    images: int = 8000
    steps: int = 900
    batch_size: int = 96
    learning_rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class LabelledRenders:
    """Images (N, 1, 32, 32) in [0, 1], their qualities, and the index of the finding each shows."""

    images_NCHW: Tensor
    qualities_N: Tensor
    findings_N: Tensor


def draw_renders(first: int, count: int) -> LabelledRenders:
    """Draw renders ``first`` to ``first + count`` of the oracle's own series."""
    drawn = [synthetic_image(SERIES, index, SIDE, degraded=0.75) for index in range(first, first + count)]
    return LabelledRenders(
        torch.from_numpy(np.stack([one.as_8_bit() for one in drawn])).float()[:, None] / 255,
        torch.tensor([one.quality for one in drawn]),
        torch.tensor([FINDINGS.index(_shown(one)) for one in drawn]),
    )


def train_oracle(renders: LabelledRenders, settings: OracleSettings) -> OracleNetwork:
    """Train the oracle by cross-entropy on quality (a soft target) and finding, with a cosine schedule."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = OracleNetwork()
    with torch.no_grad():
        network.standardise.fit(network.backbone(2 * renders.images_NCHW[:1000].expand(-1, 3, -1, -1) - 1))
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(settings.seed)
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 + math.cos(math.pi * step / settings.steps)) / 2
        rows = torch.randint(len(renders.images_NCHW), (settings.batch_size,), generator=generator)
        quality_N, findings_NK = network(renders.images_NCHW[rows])
        loss = binary_cross_entropy_with_logits(quality_N, renders.qualities_N[rows])
        # A finding behind strong noise cannot be seen, so clean images count more.
        errors_N = cross_entropy(findings_NK, renders.findings_N[rows], reduction="none")
        loss = loss + 0.5 * (errors_N * (0.2 + renders.qualities_N[rows])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            LOG.info("step %d: loss %.4f", step + 1, float(loss.detach()))
    return network.eval()


def figures(network: OracleNetwork, renders: LabelledRenders) -> dict[str, float]:
    """Return R2 of the quality, and the accuracy of the finding on clean images."""
    with torch.no_grad():
        quality_N, findings_NK = network(renders.images_NCHW)
    errors = (quality_N.sigmoid() - renders.qualities_N).square().mean()
    clean = renders.qualities_N == 1
    right = (findings_NK.argmax(1) == renders.findings_N)[clean].float().mean()
    return {"r2": 1 - float(errors / renders.qualities_N.var()), "accuracy": float(right)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.tiny_training.rating_oracle", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=ORACLE_FILE, help="the file")
    parser.add_argument("--steps", type=int, default=OracleSettings().steps)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = OracleSettings(steps=chosen.steps)
    network = train_oracle(draw_renders(0, settings.images), settings)
    halves = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(halves, chosen.out)
    LOG.info("Saved the oracle to %s: %s on held-out renders.", chosen.out, figures(network, _held_out(settings)))


def _held_out(settings: OracleSettings) -> LabelledRenders:
    return draw_renders(settings.images, HELD_OUT)


def _shown(image: SyntheticImage) -> str:
    """Return the prompt of the finding that the image shows."""
    return PROMPTS[image.modality][image.finding]


if __name__ == "__main__":
    main()
