"""The reward of generated images: the scores of selector and policy, each by its lower bound, and the selector's gate.

The judge has no part in it.
"""

from dataclasses import dataclass

from torch import Tensor

from toolkit.imagegen.heads import Scored


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """Exponents of the selector's and the policy's score, both at least 0, and whether to use the lower bounds."""

    selector_power: float = 1.0
    policy_power: float = 1.0
    lower_bound: bool = True


def rewards(selector: Scored, policy: Scored | None, settings: RewardSettings) -> Tensor:
    """Return rewards_N in [0, 1]: selector^a * policy^b. Without a policy only the first factor.

    The lower bound of a score is the mean minus one standard deviation of the heads, so that images about which the
    heads disagree are worth less.
    """
    if min(settings.selector_power, settings.policy_power) < 0:
        raise ValueError("powers must be at least 0")
    reward_N = _used(selector, settings) ** settings.selector_power
    return reward_N if policy is None else reward_N * _used(policy, settings) ** settings.policy_power


def passes(selector: Scored, threshold: float) -> Tensor:
    """Return whether each image passes the selector: its mean score is at least the threshold."""
    return selector.scores_N >= threshold


def _used(scored: Scored, settings: RewardSettings) -> Tensor:
    return scored.lower_N if settings.lower_bound else scored.scores_N
