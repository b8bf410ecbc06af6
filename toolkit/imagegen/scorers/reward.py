"""From the scores of selector and policy to the reward: the product of their lower bounds, and the selector's gate.

The gate is a threshold of the selector's score, chosen for a target precision on validation ratings. The judge has no
part in the reward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from toolkit.errors import TrainingError
from toolkit.imagegen.scorers.heads import Scored
from toolkit.scoring.statistics import Estimate, wilson


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """Exponents of the selector's and the policy's score, both at least 0."""

    selector_power: float = 1.0
    policy_power: float = 1.0


def rewards(selector: Scored, policy: Scored | None, settings: RewardSettings) -> Tensor:
    """Return rewards_N in [0, 1]: selector^a * policy^b. Without a policy only the first factor.

    The lower bound of a score is the mean minus one standard deviation of the heads, so that images about which the
    heads disagree are worth less.
    """
    if min(settings.selector_power, settings.policy_power) < 0:
        raise ValueError("powers must be at least 0")
    reward_N = selector.lower_N**settings.selector_power
    return reward_N if policy is None else reward_N * policy.lower_N**settings.policy_power


def passes(selector: Scored, threshold: float) -> Tensor:
    """Return whether each image passes the selector: its mean score is at least the threshold."""
    return selector.scores_N >= threshold


@dataclass(frozen=True, slots=True)
class ThresholdSettings:
    """``target`` is the precision to reach. A threshold that fewer than ``min_passed`` images pass does not count."""

    target: float = 0.8
    min_passed: int = 10


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold of the score, with its precision, recall and pass rate on validation data.

    Attributes:
        value: Images with at least this score pass.
        reached: Whether the target precision is reached. If not, this is the threshold with the highest precision.
        target: The target precision.
        precision: Fraction of good images among those that pass, with Wilson's interval.
        recall: Fraction of the good images that pass.
        pass_rate: Fraction of all images that pass.
        base_rate: Fraction of good images: the precision if everything passes.
    """

    value: float
    reached: bool
    target: float
    precision: Estimate
    recall: Estimate
    pass_rate: Estimate
    base_rate: Estimate


def choose_threshold(
    scores: Sequence[float] | np.ndarray, good: Sequence[bool] | np.ndarray, settings: ThresholdSettings
) -> Threshold:
    """Return the lowest threshold with the target precision, which passes the most images.

    The candidates are the scores. The target is compared with the precision itself, whose interval is reported beside
    it. If no threshold reaches the target, the one with the highest precision is returned with ``reached`` false.

    Args:
        scores: Score of each validation rating, in [0, 1].
        good: Whether each rating is high enough to pass.
        settings: Target and smallest number of images that pass.

    Raises:
        TrainingError: There are fewer than ``min_passed`` ratings.
    """
    values_N, good_N = np.asarray(scores, dtype=float), np.asarray(good, dtype=bool)
    if len(values_N) != len(good_N):
        raise ValueError(f"{len(values_N)} scores, but {len(good_N)} ratings")
    if len(values_N) < max(1, settings.min_passed):
        raise TrainingError(
            "imagegen.threshold_ratings_too_few",
            f"a threshold must have at least {max(1, settings.min_passed)} validation ratings",
            place="selector threshold",
            value=len(values_N),
            remedy="Rate more images, or lower min_passed.",
        )
    candidates_C = np.unique(values_N)
    passed_C = (values_N >= candidates_C[:, None]).sum(axis=1)
    hits_C = ((values_N >= candidates_C[:, None]) & good_N).sum(axis=1)
    enough_C = passed_C >= max(1, settings.min_passed)
    precision_C = np.where(enough_C, hits_C / passed_C, -1.0)
    reached = bool((precision_C >= settings.target).any())
    index = int(np.argmax(precision_C >= settings.target)) if reached else int(np.argmax(precision_C))
    hits, passed, n, n_good = int(hits_C[index]), int(passed_C[index]), len(values_N), int(good_N.sum())
    return Threshold(
        value=float(candidates_C[index]),
        reached=reached,
        target=settings.target,
        precision=wilson(hits, passed),
        recall=wilson(hits, n_good),
        pass_rate=wilson(passed, n),
        base_rate=wilson(n_good, n),
    )
