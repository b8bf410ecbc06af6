"""KID and FID of generated against real images, with real against real at the same n beside them.

Both compare features of our own extractor, so that they are not comparable with figures of Inception features. FID
falls with n even if the distributions are equal, so that it is given only from 4 images per feature on, and must be
read against the figure of real images.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.imagegen.figure import Figure, undefined
from toolkit.scoring.statistics import Estimate
from toolkit.scoring.statistics.bootstrap import count_groups

IMAGES_PER_FEATURE = 4
"""Images that FID needs per feature."""


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

    The halves share no group. All sets are cut to the size of the smallest.
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
    # The subset is all images, whose order does not matter, but drawing it moves the global generator.
    with torch.random.fork_rng(devices=[]):
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
