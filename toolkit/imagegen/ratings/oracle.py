"""The oracle: the rating that simulated experts without errors would give an image with its prompt.

A small network: the quality of an image, and which finding it shows. ``tests/tiny_training/rating_oracle.py`` trains it
on separate labelled renders. Unlike the closed formula of ``SyntheticImage.score`` it sees pixels only, so that it can
also score generated images. It is never the judge, and no model is trained on its parameters.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from toolkit.errors import ModelError
from toolkit.imagegen.ratings.synthetic import Oracle
from toolkit.imagegen.ratings.synthetic_images import MISMATCH, PROMPTS, SyntheticImage, synthetic_image
from toolkit.imagegen.scorers.heads import Standardise

ORACLE_FILE = Path(__file__).parent / "oracle.safetensors"
SIDE = 32
"""Pixels of the renders it is trained on."""
FINDINGS = tuple(prompt for findings in PROMPTS.values() for prompt in findings.values())
"""The prompt of each finding of each modality: the classes."""
_WIDTHS, _HIDDEN, _BATCH = (24, 48, 96, 96), 96, 256
_EPSILON = 1e-6


class _Backbone(nn.Module):
    """Four convolutions from 32 to 4 pixels. Mean and deviation of each one's maps are the features.

    It does not use the towers of the scorers, whose architecture may change while the shipped parameters stay.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _WIDTHS[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GELU(), nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after))
            for before, after in pairwise(_WIDTHS)
        )

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return features_NF."""
        maps_NCHW = self.stem(images_NCHW)
        pooled = [_moments(maps_NCHW)]
        for block in self.blocks:
            maps_NCHW = block(maps_NCHW)
            pooled.append(_moments(nn.functional.gelu(maps_NCHW)))
        return torch.cat(pooled, dim=1)


def _moments(maps_NCHW: Tensor) -> Tensor:
    values_NCP = maps_NCHW.flatten(2)
    mean_NC1 = values_NCP.mean(dim=2, keepdim=True)
    variance_NC = (values_NCP - mean_NC1).square().mean(dim=2)
    return torch.cat([mean_NC1[:, :, 0], (variance_NC + _EPSILON).sqrt()], dim=1)


class OracleNetwork(nn.Module):
    """Images (N, 3, 32, 32) in [0, 1] to quality logits (N) and finding logits (N, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Backbone()
        width = 2 * sum(_WIDTHS)
        self.standardise = Standardise(width)
        self.hidden = nn.Linear(width, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, 1 + len(FINDINGS))

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return quality logits and finding logits."""
        features = self.standardise(self.backbone(2 * images_NCHW.expand(-1, 3, -1, -1) - 1))
        output = self.out(nn.functional.gelu(self.hidden(features)))
        return output[:, 0], output[:, 1:]

    @torch.no_grad()
    def score(self, images_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores_N in [0, 1]: quality * (p + MISMATCH * (1 - p)), where p is the probability of the finding.

        Raises:
            ModelError: a prompt is not one of ``FINDINGS``.
        """
        if unknown := sorted(set(prompts) - set(FINDINGS)):
            rule = "the prompts must be those of synthetic images, because the oracle knows no others"
            raise ModelError(
                "imagegen.oracle_prompt_unknown",
                rule,
                place="imagegen.prompts",
                value=unknown[:3],
                remedy="Use the synthetic prompts.",
            )
        columns_N = torch.tensor([FINDINGS.index(prompt) for prompt in prompts])
        parts = []
        for images, columns in zip(images_NCHW.split(_BATCH), columns_N.split(_BATCH), strict=True):
            small = interpolate(images.float(), (SIDE, SIDE), mode="area") if images.shape[-1] != SIDE else images
            quality_N, findings_NK = self(small)
            shown_N = findings_NK.softmax(1).gather(1, columns[:, None])[:, 0]
            parts.append(quality_N.sigmoid() * (shown_N + MISMATCH * (1 - shown_N)))
        return torch.cat(parts) if parts else torch.zeros(0)


@cache
def load_oracle() -> OracleNetwork:
    """Return the oracle that ships with the package.

    Raises:
        ModelError: its file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network = OracleNetwork()
    try:
        network.load_state_dict(load_file(ORACLE_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        remedy = "Install the package again."
        raise ModelError(
            "imagegen.oracle_unreadable", "the oracle's parameters must be readable", place=ORACLE_FILE, remedy=remedy
        ) from error
    return network.eval()


def network_scores(seed: int, degraded: float) -> Oracle:
    """Return the oracle of a synthetic dataset.

    Images of another size than the oracle's are drawn again at its size: the same finding, degradation and severity.

    Args:
        seed: the seed of the dataset.
        degraded: fraction of its degraded images.
    """

    def scores(images: Sequence[SyntheticImage]) -> Sequence[float]:
        small = [
            image if len(image.pixels) == SIDE else synthetic_image(seed, index, SIDE, degraded)
            for index, image in enumerate(images)
        ]
        pixels = np.stack([image.as_8_bit() for image in small])
        tensors = torch.from_numpy(pixels).float()[:, None] / 255
        found: list[float] = load_oracle().score(tensors, [image.prompt for image in images]).tolist()
        return found

    return scores
