"""Heads of the scorers: an ensemble on standardised features, and CORN, the ordinal loss of the selector's heads.

CORN is of Shi, Cao and Raschka 2023 (arXiv 2111.08851): of K ordered levels, K - 1 logits are trained. Logit k is the
probability that the level is above k. It is trained only on rows with a level of at least k, so that it is conditional
on the logit before it. Departure from the paper: each row has a weight, and the loss is divided by the weights of the
trained pairs of row and logit. Integer weights therefore equal repeated rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """``count`` heads with one hidden layer of ``width`` units."""

    count: int = 3
    width: int = 64


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Scores of some images on the CPU.

    Attributes:
        scores_N: Mean of the heads' scores, in [0, 1].
        lower_N: Mean minus one standard deviation of the heads' scores (with n - 1), at least 0.
        levels_N: Predicted rank of the rating. None for a policy, which has no ranks.
    """

    scores_N: Tensor
    lower_N: Tensor
    levels_N: Tensor | None = None


class Standardise(nn.Module):
    """Features minus their training mean, divided by their training standard deviation. As they are before ``fit``."""

    mean_F: Tensor
    std_F: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean_F", torch.zeros(n_features))
        self.register_buffer("std_F", torch.ones(n_features))

    def fit(self, features_NF: Tensor) -> None:
        """Take the mean and standard deviation of the training features. A constant feature is only centred."""
        self.mean_F.copy_(features_NF.mean(dim=0))
        std_F = features_NF.std(dim=0, unbiased=False)
        self.std_F.copy_(torch.where(std_F > 1e-6, std_F, torch.ones_like(std_F)))

    def forward(self, features_NF: Tensor) -> Tensor:
        """Return standardised features_NF."""
        return (features_NF - self.mean_F) / self.std_F


class HeadEnsemble(nn.Module):
    """Heads with different random parameters on the same features."""

    def __init__(self, n_features: int, n_outputs: int, settings: HeadSettings, seed: int) -> None:
        super().__init__()
        if settings.count < 1:
            raise ValueError(f"there must be a head or more, got {settings.count}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(
                nn.Sequential(nn.Linear(n_features, settings.width), nn.GELU(), nn.Linear(settings.width, n_outputs))
                for _ in range(settings.count)
            )

    def forward(self, features_NF: Tensor) -> Tensor:
        """Return logits_HNK: heads x rows x outputs."""
        return torch.stack([head(features_NF) for head in self.heads])


def head_weights(groups: Sequence[str], n_heads: int, seed: int) -> Tensor:
    """Return weights_HN by which each head sees its own sample of the groups: a Bayesian bootstrap (Rubin 1981).

    A group has one exponential weight per head, and the weights of a head have a mean of 1 over the rows. With one head
    all weights are 1.
    """
    codes = {group: code for code, group in enumerate(dict.fromkeys(groups))}
    index_N = torch.tensor([codes[group] for group in groups])
    if n_heads == 1:
        return torch.ones(1, len(groups))
    generator = torch.Generator().manual_seed(seed)
    drawn_HG = torch.empty(n_heads, len(codes)).exponential_(generator=generator)
    weights_HN = drawn_HG[:, index_N]
    return weights_HN / weights_HN.mean(dim=1, keepdim=True)


def lower_bound(scores_HN: Tensor) -> Tensor:
    """Return the mean minus one standard deviation over the heads, at least 0. One head has no deviation."""
    if len(scores_HN) == 1:
        return scores_HN[0]
    mean_N = scores_HN.mean(dim=0)
    # By hand: Tensor.std warns if there are no images.
    variance_N = (scores_HN - mean_N).square().sum(dim=0) / (len(scores_HN) - 1)
    return (mean_N - variance_N.sqrt()).clamp_min(0)


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
    _check_corn(logits_NK, levels_N, weights_N)
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


def _check_corn(logits_NK: Tensor, levels_N: Tensor, weights_N: Tensor) -> None:
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
