"""Statistics of weighted rows, for many weightings at once. Integer weights equal repeated rows.

Each function takes weights_RN (samples x rows) and returns the value of each sample, NaN if it is undefined.
"""

import numpy as np


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
