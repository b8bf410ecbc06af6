"""Metrics of generated images against real ones: KID and FID, diversity within prompts, and distance to copies.

KID, FID and the distances compare features of our own extractor, so that they are not comparable with figures of
Inception features. FID falls with n even if the distributions are equal, so that it is given only from 4 images per
feature on, and must be read against the figure of real images. An image counts as a copy if it is nearer to a training
image than 1 % of real images are to the nearest real image of another patient.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.imagegen.evaluation.statistics import Bootstrap, Figure, undefined
from toolkit.imagegen.scorers.fitting import as_floats
from toolkit.scoring.statistics import Estimate, bootstrap_mean, proportion
from toolkit.scoring.statistics.bootstrap import count_groups

IMAGES_PER_FEATURE = 4
"""Images that FID needs per feature."""

_BATCH = 128

_CHUNK = 512


@dataclass(frozen=True, slots=True)
class DistributionSettings:
    """``seed`` splits the real images into two halves and draws ``n`` images of each set."""

    seed: int = 0
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class DistributionFigures:
    """Distances of distributions, each of ``n`` against ``n`` images with ``num_features`` features.

    Attributes:
        n: Images of each side.
        num_features: Features of the extractor.
        kid: KID (squared maximum mean discrepancy, unbiased, cubic kernel) of generated against real images, with a
            jackknife interval over the groups of both. It may be below 0.
        fid: FID of generated against real images, without an interval.
        real_kid: KID of one half of the real images against the other.
        real_fid: The same for FID.
    """

    n: int
    num_features: int
    kid: Figure
    fid: Figure
    real_kid: Figure
    real_fid: Figure


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSet:
    """Features of images, and the group of each: the patient of a real image, the prompt of a generated one."""

    features_NF: Tensor
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the length."""
        if len(self.features_NF) != len(self.groups):
            raise ValueError(f"{len(self.features_NF)} images, but {len(self.groups)} groups")

    def take(self, rows: Sequence[int]) -> "FeatureSet":
        """Return some of the images."""
        return FeatureSet(self.features_NF[list(rows)], tuple(self.groups[row] for row in rows))


def distribution_figures(
    generated: FeatureSet, real: FeatureSet, settings: DistributionSettings
) -> DistributionFigures:
    """Compare generated images with one half of the real ones, and the two halves with each other.

    No group is in both halves. All sets are cut to the size of the smallest.
    """
    rng = np.random.default_rng(settings.seed)
    first, second = _halves(real, rng)
    n = min(len(generated.groups), len(first.groups), len(second.groups))
    first, second, generated = _draw(first, n, rng), _draw(second, n, rng), _draw(generated, n, rng)
    return DistributionFigures(
        n=n,
        num_features=real.features_NF.shape[1],
        kid=kid(first, generated, settings.confidence),
        fid=fid(first, generated, settings.confidence),
        real_kid=kid(first, second, settings.confidence),
        real_fid=fid(first, second, settings.confidence),
    )


def kid(real: FeatureSet, generated: FeatureSet, confidence: float = 0.95) -> Figure:
    """Return KID of equally many images, with an interval from the jackknife over the groups of both sets.

    Not from the bootstrap: a group that is drawn twice is compared with its own copy, which raises KID above the value
    of the data. The variance is the sum over both sets of ``(G - 1) / G`` times the squared deviations of the values
    without one of the G groups (Efron and Stein 1981).
    """
    n, n_groups = len(generated.groups), count_groups(generated.groups)
    if n < 2:
        return undefined("fewer than 2 images", n, n_groups, confidence)
    value = _torchmetrics_kid(real.features_NF.double(), generated.features_NF.double())
    arrays = real.features_NF.double().numpy(), generated.features_NF.double().numpy()
    without_real, without_generated = _without_each(real.groups), _without_each(generated.groups)
    all_real, all_generated = np.ones((len(without_generated), n)), np.ones((len(without_real), n))
    variance = _jackknife(squared_mmd(*arrays, without_real, all_generated))
    variance += _jackknife(squared_mmd(*arrays, all_real, without_generated))
    if not np.isfinite(variance):  # one group, or one image beside it
        return Figure(Estimate(value, n, None, None, "none", n_groups, confidence))
    margin = NormalDist().inv_cdf((1 + confidence) / 2) * variance**0.5
    return Figure(Estimate(value, n, value - margin, value + margin, "jackknife by group", n_groups, confidence))


def fid(real: FeatureSet, generated: FeatureSet, confidence: float = 0.95) -> Figure:
    """Return FID of equally many images, if they are enough for the number of features."""
    n, n_groups = len(generated.groups), count_groups(generated.groups)
    needed = IMAGES_PER_FEATURE * real.features_NF.shape[1]
    if min(n, len(real.groups)) < needed:
        return undefined(f"FID of {real.features_NF.shape[1]} features needs {needed} images", n, n_groups, confidence)
    value = _torchmetrics_fid(real.features_NF.double(), generated.features_NF.double())
    return Figure(Estimate(value, n, None, None, "none", n_groups, confidence))


def squared_mmd(
    first_NF: np.ndarray, second_MF: np.ndarray, first_weights_RN: np.ndarray, second_weights_RM: np.ndarray
) -> np.ndarray:
    """Return the unbiased squared maximum mean discrepancies of weighted images, with the kernel (x y / F + 1)^3.

    A pair of an image with itself is left out, also if its weight is 2.
    """
    within = _within(first_NF, first_weights_RN) + _within(second_MF, second_weights_RM)
    total_R = first_weights_RN.sum(axis=1) * second_weights_RM.sum(axis=1)
    across_R = ((first_weights_RN @ _kernel(first_NF, second_MF)) * second_weights_RM).sum(axis=1) / total_R
    discrepancy_R: np.ndarray = within - 2 * across_R
    return discrepancy_R


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


@dataclass(frozen=True, slots=True)
class CopyFigures:
    """Nearest-neighbour distances in feature space.

    Attributes:
        quantile: Which quantile of the real images' distances is the floor.
        floor: That quantile. None if there are no two groups of real images.
        real_median: Median distance from a real image to the nearest one of another group.
        generated_median: Median distance from a generated image to the nearest real one.
        nearest: Smallest distance of a generated image.
        below_floor: Fraction of the generated images whose distance is at most the floor. Real images have
            ``quantile`` by definition.
    """

    quantile: float
    floor: float | None
    real_median: float | None
    generated_median: float | None
    nearest: float | None
    below_floor: Figure


def copy_figures(generated: FeatureSet, real: FeatureSet, bootstrap: Bootstrap, quantile: float = 0.01) -> CopyFigures:
    """Compare generated images with the real images that the generator may have been trained on.

    Args:
        generated: Features of generated images, grouped by prompt.
        real: Features of real images, grouped by patient. Images of one group may be alike.
        bootstrap: Settings of the interval.
        quantile: Of the real distances.
    """
    n, n_groups = len(generated.groups), len(set(generated.groups))
    among_real = nearest_distances(real.features_NF, real, real.groups)
    among_real = among_real[among_real.isfinite()]
    found = nearest_distances(generated.features_NF, real, None) if len(real.groups) else torch.zeros(0)
    median = float(found.median()) if len(found) else None
    nearest = float(found.min()) if len(found) else None
    if not len(among_real) or not n:
        reason = "no generated image" if len(among_real) else "fewer than 2 groups of real images"
        return CopyFigures(quantile, None, None, median, nearest, undefined(reason, n, n_groups, bootstrap.confidence))
    floor = float(torch.quantile(among_real.double(), quantile))
    below = (found.double() <= floor).double().tolist()
    figure = Figure(proportion(below, generated.groups, bootstrap.resamples, bootstrap.seed, bootstrap.confidence))
    return CopyFigures(quantile, floor, float(among_real.median()), median, nearest, figure)


def nearest_distances(queries_NF: Tensor, real: FeatureSet, own_groups: tuple[str, ...] | None) -> Tensor:
    """Return the Euclidean distance from each query to the nearest real image, on the CPU.

    Args:
        queries_NF: Features of the queries.
        real: Where neighbours are searched.
        own_groups: The group of each query, whose images are left out. An infinite distance if no other is left.
    """
    codes = {group: code for code, group in enumerate(dict.fromkeys(real.groups))}
    real_codes_M = torch.tensor([codes[group] for group in real.groups], dtype=torch.long)
    parts = []
    for start in range(0, len(queries_NF), _CHUNK):
        chunk = queries_NF[start : start + _CHUNK].double()
        # Without matrix products, whose rounding gives a copy a distance above 0.
        distances_CM = torch.cdist(chunk, real.features_NF.double(), compute_mode="donot_use_mm_for_euclid_dist")
        if own_groups is not None:
            own_C = torch.tensor([codes.get(group, -1) for group in own_groups[start : start + _CHUNK]])
            distances_CM = distances_CM.masked_fill(own_C[:, None] == real_codes_M, torch.inf)
        parts.append(distances_CM.amin(dim=1))
    return torch.cat(parts) if parts else torch.zeros(0)


def _without_each(groups: Sequence[str]) -> np.ndarray:
    """Return weights_GN: row g has 0 for the images of group g and 1 for all others."""
    codes = {group: code for code, group in enumerate(dict.fromkeys(groups))}
    index_N = np.array([codes[group] for group in groups])
    weights_GN: np.ndarray = (np.arange(len(codes))[:, None] != index_N[None]).astype(float)
    return weights_GN


def _jackknife(values_G: np.ndarray) -> float:
    """Return the jackknife's variance of a statistic, from its values without each group."""
    if len(values_G) < 2:
        return float("nan")
    return float((len(values_G) - 1) * np.var(values_G))


class _Given(nn.Module):
    """Features that were computed before: torchmetrics is given a module from images to features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features_NF: Tensor) -> Tensor:
        return features_NF


def _torchmetrics_kid(real_NF: Tensor, generated_NF: Tensor) -> float:
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(real_NF), len(generated_NF))
    with warnings.catch_warnings():
        # It warns that features are kept, which are few here.
        warnings.filterwarnings("ignore", message=".*will save all extracted features", category=UserWarning)
        metric = KernelInceptionDistance(_Given(real_NF.shape[1]), subsets=1, subset_size=size)
    metric.set_dtype(torch.float64)
    # The subset is all images, but their order decides the last digits, and the global generator draws it.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        metric.update(real_NF, real=True)
        metric.update(generated_NF, real=False)
        return float(metric.compute()[0])


def _torchmetrics_fid(real_NF: Tensor, generated_NF: Tensor) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(real_NF.shape[1])).set_dtype(torch.float64)
    metric.update(real_NF, real=True)
    metric.update(generated_NF, real=False)
    return float(metric.compute())


def _kernel(first_NF: np.ndarray, second_MF: np.ndarray) -> np.ndarray:
    kernel: np.ndarray = (first_NF @ second_MF.T / first_NF.shape[1] + 1) ** 3
    return kernel


def _within(features_NF: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    kernel_NN = _kernel(features_NF, features_NF)
    np.fill_diagonal(kernel_NN, 0)
    pairs_R = weights_RN.sum(axis=1) ** 2 - (weights_RN**2).sum(axis=1)
    sums_R = ((weights_RN @ kernel_NN) * weights_RN).sum(axis=1)
    means_R: np.ndarray = np.divide(sums_R, pairs_R, out=np.full(len(sums_R), np.nan), where=pairs_R > 0)
    return means_R


def _halves(real: FeatureSet, rng: np.random.Generator) -> tuple[FeatureSet, FeatureSet]:
    """Return two sets of about the same number of images. No group is in both."""
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(real.groups):
        rows.setdefault(group, []).append(row)
    halves: tuple[list[int], list[int]] = ([], [])
    names = list(rows)
    for index in rng.permutation(len(names)):
        halves[len(halves[0]) > len(halves[1])].extend(rows[names[index]])
    return real.take(halves[0]), real.take(halves[1])


def _draw(images: FeatureSet, n: int, rng: np.random.Generator) -> FeatureSet:
    return images.take(sorted(rng.permutation(len(images.groups))[:n].tolist()))


def _mean(values: Sequence[float], pairs: Pairs, bootstrap: Bootstrap) -> Figure:
    if not values:
        return undefined("no prompt has 2 images", 0, 0, bootstrap.confidence)
    return Figure(bootstrap_mean(values, pairs.prompts, bootstrap.resamples, bootstrap.seed, bootstrap.confidence))
