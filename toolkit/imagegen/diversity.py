"""How different images of one prompt are: MS-SSIM (lower is more diverse) and distance of features (higher is)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toolkit.imagegen.figure import Bootstrap, Figure, undefined
from toolkit.imagegen.rated import as_floats
from toolkit.scoring.statistics import bootstrap_mean

_BATCH = 128


@dataclass(frozen=True, slots=True)
class MsSsimSetting:
    """Scales and Gaussian window of MS-SSIM. Values of different settings are not comparable, so it is reported.

    torchmetrics makes the window from ``sigma`` alone. ``kernel_size`` only limits the size of the images it takes.
    """

    betas: tuple[float, ...]
    kernel_size: int
    sigma: float

    def __str__(self) -> str:
        """Return text such as ``betas 0.5 0.5, Gaussian window of 7 pixels, sigma 0.8``."""
        window = 2 * int(3.5 * self.sigma + 0.5) + 1
        return f"betas {' '.join(map(str, self.betas))}, Gaussian window of {window} pixels, sigma {self.sigma:g}"


STANDARD = MsSsimSetting((0.0448, 0.2856, 0.3001, 0.2363, 0.1333), 11, 1.5)
"""Wang, Simoncelli and Bovik 2003."""

_BY_SIDE = (
    (176, STANDARD),
    (44, MsSsimSetting((0.0448, 0.2856, 0.3001), 11, 1.5)),
    (16, MsSsimSetting((0.5, 0.5), 5, 0.8)),
)
"""The smallest side of images for each setting, in pixels."""


@dataclass(frozen=True, slots=True)
class DiversityFigures:
    """Means over pairs of images with the same prompt, with a bootstrap over prompts.

    Attributes:
        ms_ssim: MS-SSIM of the pairs.
        ms_ssim_setting: With which setting. Empty if the images are too small.
        distance: Euclidean distance of the pairs' features.
    """

    ms_ssim: Figure
    ms_ssim_setting: str
    distance: Figure


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of images with the same prompt."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    prompts: tuple[str, ...]


def diversity_figures(images_NCHW: Tensor, features_NF: Tensor, pairs: Pairs, bootstrap: Bootstrap) -> DiversityFigures:
    """Return the diversity within prompts. Compare it with that of real images with the same prompts."""
    distances = (features_NF[list(pairs.first)] - features_NF[list(pairs.second)]).norm(dim=1).tolist()
    setting = setting_for(images_NCHW.shape[-1])
    if setting is None:
        reason = f"MS-SSIM needs images of 16 pixels or more, these have {images_NCHW.shape[-1]}"
        ms_ssim = undefined(reason, len(pairs.first), len(set(pairs.prompts)), bootstrap.confidence)
    else:
        ms_ssim = _mean(pair_ms_ssim(images_NCHW, pairs, setting).tolist(), pairs, bootstrap)
    return DiversityFigures(ms_ssim, str(setting or ""), _mean(distances, pairs, bootstrap))


def prompt_pairs(prompts: Sequence[str], max_pairs: int, seed: int) -> Pairs:
    """Return the pairs of images with the same prompt, at most ``max_pairs`` of each prompt, drawn at random."""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    rng = np.random.default_rng(seed)
    found: list[tuple[int, int, str]] = []
    for prompt, members in rows.items():
        all_pairs = [(a, b, prompt) for index, a in enumerate(members) for b in members[index + 1 :]]
        chosen = sorted(rng.permutation(len(all_pairs))[:max_pairs].tolist())
        found.extend(all_pairs[index] for index in chosen)
    return Pairs(*(tuple(column) for column in zip(*found, strict=True))) if found else Pairs((), (), ())


def setting_for(side: int) -> MsSsimSetting | None:
    """Return the setting for images of ``side`` pixels. None for images that are too small."""
    return next((setting for smallest, setting in _BY_SIDE if side >= smallest), None)


def pair_ms_ssim(images_NCHW: Tensor, pairs: Pairs, setting: MsSsimSetting) -> Tensor:
    """Return the MS-SSIM of each pair, with negative contrast terms set to 0."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    values = []
    for start in range(0, len(pairs.first), _BATCH):
        first, second = (list(each[start : start + _BATCH]) for each in (pairs.first, pairs.second))
        found = multiscale_structural_similarity_index_measure(
            as_floats(images_NCHW[first]),
            as_floats(images_NCHW[second]),
            kernel_size=setting.kernel_size,
            sigma=setting.sigma,
            betas=setting.betas,
            data_range=1.0,
            reduction="none",
        )
        values.append(torch.as_tensor(found).reshape(-1))
    return torch.cat(values) if values else torch.zeros(0)


def _mean(values: Sequence[float], pairs: Pairs, bootstrap: Bootstrap) -> Figure:
    if not values:
        return undefined("no prompt has 2 images", 0, 0, bootstrap.confidence)
    return Figure(bootstrap_mean(values, pairs.prompts, bootstrap.resamples, bootstrap.seed, bootstrap.confidence))
