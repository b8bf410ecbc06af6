"""An ensemble of small heads on shared features. Their disagreement gives a lower bound of the score."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
