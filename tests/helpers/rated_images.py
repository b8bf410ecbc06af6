"""Drawn images with known quality: a disc (or two) on a gradient, spoiled by noise. For tests of scorers."""

import torch
from torch import Tensor

from toolkit.imagegen.scorers.fitting import RatedImages

SIDE = 32
MODALITIES = ("OCT", "CT")
FINDINGS = ("normal", "nodule")


def drawn(n: int, seed: int, side: int = SIDE) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
    """Images N x 3 x side x side, their qualities in [0, 1] (1 without noise), and modality and finding of each."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    quality = torch.rand(n, generator=generator)
    images, kinds = [], []
    for index in range(n):
        modality, finding = MODALITIES[index % 2], FINDINGS[(index // 2) % 2]
        x, y = (torch.rand(2, generator=generator) * 0.4 - 0.2).tolist()
        base = rows * 0.2 + 0.4 if modality == "OCT" else columns * 0.2 + 0.4
        image = torch.where((rows - x) ** 2 + (columns - y) ** 2 < 0.5, base + 0.25, base)
        if finding == "nodule":
            image = torch.where((rows - x - 0.2) ** 2 + (columns - y) ** 2 < 0.06, 0.05, image)
        noise = torch.randn(side, side, generator=generator) * 0.25 * (1 - quality[index])
        images.append((image + noise).clamp(0, 1).expand(3, -1, -1))
        kinds.append((modality, finding))
    return torch.stack(images), quality, kinds


def rated(n: int, seed: int, n_levels: int = 3, side: int = SIDE) -> RatedImages:
    """Drawn images whose rating is their quality in equal parts, each image a group."""
    images, quality, kinds = drawn(n, seed, side)
    return RatedImages(
        images_NCHW=images,
        levels_N=(quality * n_levels).long().clamp_max(n_levels - 1),
        weights_N=torch.ones(n),
        prompts=tuple(f"{modality}: {finding}" for modality, finding in kinds),
        modalities=tuple(modality for modality, _ in kinds),
        groups=tuple(f"image {index}" for index in range(n)),
    )
