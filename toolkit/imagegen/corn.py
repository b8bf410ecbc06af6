"""CORN, an ordinal regression loss for ratings, with sample weights.

Shi, Cao and Raschka 2023 (arXiv 2111.08851): of K ordered levels, K - 1 logits are trained. Logit k answers "is the
level above k?", and is trained only on rows with a level of at least k, so that it is conditional on the logit before
it. Departure from the paper: each row has a weight, and the loss is divided by the weights of the trained pairs of row
and logit. Integer weights therefore equal repeated rows.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def corn_loss(logits_NK: Tensor, levels_N: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """Return the weighted mean of the binary cross-entropies of all pairs of a row and a logit it trains.

    Args:
        logits_NK: Rows x (levels - 1).
        levels_N: Rank of each row's rating, an integer from 0 to levels - 1.
        weights_N: Weight of each row, finite and at least 0. All 1 if None.

    Raises:
        ValueError: A shape, level or weight does not fit, or all weights are 0.
    """
    weights_N = torch.ones_like(logits_NK[:, 0]) if weights_N is None else weights_N.to(logits_NK.dtype)
    _check(logits_NK, levels_N, weights_N)
    thresholds_K = torch.arange(logits_NK.shape[1], device=logits_NK.device)
    above_NK = levels_N[:, None] > thresholds_K
    trained_NK = (levels_N[:, None] >= thresholds_K) * weights_N[:, None]
    losses_NK = -torch.where(above_NK, logsigmoid(logits_NK), logsigmoid(-logits_NK))
    return (losses_NK * trained_NK).sum() / trained_NK.sum()


def corn_exceedance(logits_NK: Tensor) -> Tensor:
    """Return the probabilities that the level is above 0, 1, ..., levels - 2: each a product of conditional ones.

    They never increase from left to right. Any leading axes are kept.
    """
    return torch.sigmoid(logits_NK).cumprod(dim=-1)


def corn_score(logits_NK: Tensor) -> Tensor:
    """Return the expected rank divided by the highest rank, in [0, 1]: the mean of the exceedance probabilities."""
    return corn_exceedance(logits_NK).mean(dim=-1)


def _check(logits_NK: Tensor, levels_N: Tensor, weights_N: Tensor) -> None:
    n, n_logits = logits_NK.shape
    if not n or not n_logits:
        raise ValueError(f"logits must have at least one row and one column, got {n} x {n_logits}")
    if levels_N.shape != (n,) or weights_N.shape != (n,):
        raise ValueError(f"{n} rows, but {levels_N.numel()} levels and {weights_N.numel()} weights")
    if levels_N.is_floating_point():
        raise ValueError(f"levels must be integer ranks, got {levels_N.dtype}")
    if int(levels_N.min()) < 0 or int(levels_N.max()) > n_logits:
        raise ValueError(f"levels must be from 0 to {n_logits}, got {int(levels_N.min())} to {int(levels_N.max())}")
    if not torch.isfinite(weights_N).all() or float(weights_N.min()) < 0 or float(weights_N.sum()) == 0:
        raise ValueError("weights must be finite and at least 0, and one of them above 0")
