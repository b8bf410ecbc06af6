"""Metrics with an interval or a reason why they are undefined, statistics of weighted rows, and paired differences.

A statistic of weighted rows is computed for many weightings at once: weights_RN (samples x rows) to the value of each
sample, NaN if it is undefined. Integer weights equal repeated rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.errors import TrainingError
from toolkit.scoring.statistics import Estimate, Paired, paired_difference
from toolkit.scoring.statistics.bootstrap import count_groups
from toolkit.scoring.statistics.intervals import bootstrapped

MIN_PAIRS = 384
"""Pairs that a table needs: a difference in judge score of about 0.02 is then visible."""


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate. If its value is None, ``reason`` says why."""

    estimate: Estimate
    reason: str | None = None

    def __post_init__(self) -> None:
        """Check that a missing value has a reason."""
        if (self.estimate.value is None) != (self.reason is not None):
            raise ValueError("a figure must have either a value or a reason")

    @property
    def value(self) -> float | None:
        """The value, None if undefined."""
        return self.estimate.value


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Settings of the bootstrap by group."""

    resamples: int = 1000
    seed: int = 0
    confidence: float = 0.95


def undefined(reason: str, n: int, n_groups: int, confidence: float = 0.95) -> Figure:
    """Return a figure without a value."""
    return Figure(Estimate(None, n, None, None, "none", n_groups, confidence), reason)


def sample_weights(groups: Sequence[str], bootstrap: Bootstrap) -> np.ndarray:
    """Return weights_RN: how often each row is in each sample. Row 0 is the sample as it is, with weights of 1.

    A statistic of weighted rows is thus computed for the data and for all bootstrap samples at once.
    """
    codes = {group: code for code, group in enumerate(dict.fromkeys(groups))}
    n_groups = max(1, len(codes))
    rng = np.random.default_rng(bootstrap.seed)
    draws_RG = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=bootstrap.resamples).astype(float)
    index_N = np.array([codes[group] for group in groups], dtype=int)
    return np.concatenate([np.ones((1, len(groups))), draws_RG[:, index_N]])


def from_samples(values_R: np.ndarray, groups: Sequence[str], reason: str, bootstrap: Bootstrap) -> Figure:
    """Return the figure of a statistic's values in the samples of ``sample_weights``.

    Args:
        values_R: The value of the data first, then those of the bootstrap samples. NaN if undefined.
        groups: The group of each row.
        reason: Why the value of the data is undefined, if it is.
        bootstrap: Settings with which the samples were drawn.
    """
    n_groups = count_groups(groups)
    if np.isnan(values_R[0]):
        return undefined(reason, len(groups), n_groups, bootstrap.confidence)
    value = float(values_R[0])
    return Figure(bootstrapped(value, len(groups), n_groups, values_R[1:], bootstrap.confidence))


def weighted_mean(values_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Return the weighted means."""
    return _ratio(weights_RN @ values_N, weights_RN.sum(axis=1))


def spearman(first_N: np.ndarray, second_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlations. Ties have their mean rank."""
    first_RN, second_RN = _mid_ranks(first_N, weights_RN), _mid_ranks(second_N, weights_RN)
    total_R1 = weights_RN.sum(axis=1, keepdims=True)
    first_RN = first_RN - _ratio((weights_RN * first_RN).sum(axis=1, keepdims=True), total_R1)
    second_RN = second_RN - _ratio((weights_RN * second_RN).sum(axis=1, keepdims=True), total_R1)
    covariance_R = (weights_RN * first_RN * second_RN).sum(axis=1)
    variances_R = (weights_RN * first_RN**2).sum(axis=1) * (weights_RN * second_RN**2).sum(axis=1)
    # Ranks are multiples of 1/2, so that a smaller variance is rounding.
    return _ratio(covariance_R, np.sqrt(np.where(variances_R > 1e-6, variances_R, 0)))


def auroc(scores_N: np.ndarray, positive_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Return the areas under the ROC curve. Ties of a positive and a negative row count one half."""
    positive_RN, negative_RN = weights_RN * positive_N, weights_RN * ~positive_N
    pairs_R = positive_RN.sum(axis=1) * negative_RN.sum(axis=1)
    below_RN, equal_RN = _below_and_equal(scores_N, negative_RN)
    return _ratio((positive_RN * (below_RN + equal_RN / 2)).sum(axis=1), pairs_R)


def quadratic_kappa(true_N: np.ndarray, predicted_N: np.ndarray, n_levels: int, weights_RN: np.ndarray) -> np.ndarray:
    """Return Cohen's kappas with quadratic weights. Undefined if all levels, true and predicted, are the same."""
    cells = np.eye(n_levels * n_levels)[true_N * n_levels + predicted_N]
    return kappa_of_counts((weights_RN @ cells).reshape(-1, n_levels, n_levels))


def kappa_of_counts(observed_RKK: np.ndarray) -> np.ndarray:
    """Return Cohen's kappas with quadratic weights of matrices that count pairs of levels. NaN: undefined."""
    expected_RKK = observed_RKK.sum(axis=2, keepdims=True) * observed_RKK.sum(axis=1, keepdims=True)
    levels = np.arange(observed_RKK.shape[-1])
    distance_KK = (levels[:, None] - levels) ** 2
    total_R = observed_RKK.sum(axis=(1, 2))
    disagreement_R = (observed_RKK * distance_KK).sum(axis=(1, 2)) * total_R
    kappa_R: np.ndarray = 1 - _ratio(disagreement_R, (expected_RKK * distance_KK).sum(axis=(1, 2)))
    return kappa_R


def calibration_error(scores_N: np.ndarray, targets_N: np.ndarray, n_bins: int, weights_RN: np.ndarray) -> np.ndarray:
    """Return expected calibration errors: the mean over rows of |mean score - mean target| of the row's bin.

    Bins of scores in [0, 1] have equal width. A score on a border belongs to the bin above it, as in torchmetrics, and
    1 to the last.
    """
    bins_N = np.minimum((scores_N * n_bins).astype(int), n_bins - 1)
    gaps_NB = np.eye(n_bins)[bins_N] * (scores_N - targets_N)[:, None]
    return _ratio(np.abs(weights_RN @ gaps_NB).sum(axis=1), weights_RN.sum(axis=1))


@dataclass(frozen=True, slots=True, order=True)
class ImageKey:
    """The prompt and the noise that an image is generated from."""

    prompt: str
    noise_seed: int


def compare_arms(
    before: Mapping[ImageKey, float], after: Mapping[ImageKey, float], bootstrap: Bootstrap, min_pairs: int = MIN_PAIRS
) -> Paired:
    """Return the mean of ``after - before`` over images from the same prompt and noise.

    Raises:
        TrainingError: The arms differ in prompts or noise, or there are fewer than ``min_pairs`` pairs.
    """
    if different := sorted(set(before) ^ set(after)):
        raise TrainingError(
            "imagegen.arms_differ_in_images",
            "both arms must have images from the same prompts and noise",
            place="evaluation",
            value=f"{len(different)} images are in one arm only, such as {different[0]}",
            remedy="Evaluate both arms with the same prompts, count and seed.",
        )
    if len(before) < min_pairs:
        raise TrainingError(
            "imagegen.comparison_too_small",
            f"a comparison must have at least {min_pairs} images of each arm",
            place="evaluation",
            value=len(before),
            remedy="Generate more images per prompt.",
        )
    keys = sorted(before)
    return paired_difference(
        [before[key] for key in keys],
        [after[key] for key in keys],
        [key.prompt for key in keys],
        bootstrap.resamples,
        bootstrap.seed,
        bootstrap.confidence,
    )


def _mid_ranks(values_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    below_RN, equal_RN = _below_and_equal(values_N, weights_RN)
    return below_RN + (equal_RN + 1) / 2


def _below_and_equal(values_N: np.ndarray, weights_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of the rows with a smaller value than each row, and with the same value: samples x rows."""
    distinct, codes_N = np.unique(values_N, return_inverse=True)
    order_N = np.argsort(codes_N, kind="stable")
    starts_U = np.searchsorted(codes_N[order_N], np.arange(len(distinct)))
    equal_RU = np.add.reduceat(weights_RN[:, order_N], starts_U, axis=1)
    below_RU = equal_RU.cumsum(axis=1) - equal_RU
    return below_RU[:, codes_N], equal_RU[:, codes_N]


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return ratio
