"""Estimates with n and interval: Wilson's for independent yes/no answers, otherwise the bootstrap by group.

Wilson's formula is exact enough at small n and near 0 and 1, where a bootstrap is too narrow, but it needs independent
answers. ``proportion`` chooses between the two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from toolkit.scoring.statistics.bootstrap import count_groups, percentile_interval, resampled_sums


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over ``n`` answers of ``groups`` patients, lesions or images.

    ``value`` is None if n is 0. ``low`` and ``high`` are None if there is no interval (n is 0, or a bootstrap over one
    group), so NaN never occurs. ``method`` is one of "wilson", "wilson by group", "wilson by class", "wilson of no
    change", "bootstrap by group", "jackknife by group", "t over repetitions" and "none".
    """

    value: float | None
    n: int
    low: float | None
    high: float | None
    method: str
    groups: int
    confidence: float = 0.95

    def __str__(self) -> str:
        """Return the estimate in percent: ``84.0 % (71.5 to 91.7, n 50)``."""
        if self.value is None:
            return f"- (n {self.n})"
        if self.low is None or self.high is None:
            return f"{100 * self.value:.1f} % (no interval, n {self.n})"
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f}, n {self.n})"


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Return a proportion with Wilson's score interval (1927), which stays in [0, 1] and has a width at 0 and 1.

    >>> str(wilson(42, 50))
    '84.0 % (71.5 to 91.7, n 50)'

    Raises:
        ValueError: Not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be from 0 to n, got {successes} of {n}")
    if n == 0:
        return Estimate(None, 0, None, None, "none", 0, confidence)
    low, high = _wilson_interval(successes / n, n, confidence)
    return Estimate(successes / n, n, low, high, "wilson", n, confidence)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the mean of independent repetitions, such as runs with other seeds, with Student's t interval.

    The interval is the mean plus and minus t with n - 1 degrees of freedom times the standard error (Student 1908). It
    may leave the range of the values. ``n`` and ``groups`` are the number of repetitions.

    >>> str(t_interval([0.6, 0.7, 0.8]))
    '70.0 % (45.2 to 94.8, n 3)'

    Args:
        values: Finite numbers, at least two.
        confidence: Confidence level, such as 0.95.

    Raises:
        ValueError: There are fewer than two values, or one is not finite.
    """
    numbers = _finite(values)
    n = len(numbers)
    if n < 2:
        raise ValueError(f"values must have at least two entries, got {n}")
    from scipy.stats import t  # takes half a second to import and is rarely needed

    mean, error = float(numbers.mean()), float(numbers.std(ddof=1)) / math.sqrt(n)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * error
    return Estimate(mean, n, mean - half, mean + half, "t over repetitions", n, confidence)


def bootstrap_mean(
    values: Sequence[float], groups: Sequence[str], resamples: int, seed: int, confidence: float = 0.95
) -> Estimate:
    """Return the mean of the values with the percentile interval of a bootstrap over whole groups.

    Answers about one image are correlated, so images are drawn with replacement instead of questions. The mean of
    a bootstrap sample is its sum divided by its number of values (Efron and Tibshirani 1993, chapter 13. Field and
    Welsh 2007). With fewer than about 20 groups such intervals are too narrow.

    Args:
        values: Finite numbers.
        groups: The group of each value.
        resamples: Number of bootstrap samples.
        seed: The same seed and groups give the same draws.
        confidence: Confidence level, such as 0.95.

    Raises:
        ValueError: A value is not finite, or the sequences differ in length.
    """
    return bootstrap_ratio(values, [1.0] * len(values), groups, resamples, seed, confidence)


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    groups: Sequence[str],
    resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Estimate:
    """Return the ratio of two sums, such as a loss per token, with the percentile interval of ``bootstrap_mean``.

    >>> bootstrap_ratio([6.0, 3.0], [2, 1], ["a", "b"], resamples=100, seed=0)
    Estimate(value=3.0, n=2, low=3.0, high=3.0, method='bootstrap by group', groups=2, confidence=0.95)

    Args:
        numerators: Finite numbers.
        denominators: Positive numbers.
        groups: The group of each pair.
        resamples: Number of bootstrap samples.
        seed: The same seed and groups give the same draws.
        confidence: Confidence level, such as 0.95.

    Raises:
        ValueError: A value is not finite, or the sequences differ in length.
    """
    tops, bottoms, n_groups = _finite(numerators), _finite(denominators), count_groups(groups)
    if not len(tops) == len(bottoms) == len(groups):
        raise ValueError(f"{len(tops)} values, {len(bottoms)} denominators, but {len(groups)} groups")
    if not len(tops):
        return Estimate(None, 0, None, None, "none", 0, confidence)
    sums_R2 = resampled_sums(np.column_stack([tops, bottoms]), groups, resamples, seed)
    value = math.fsum(tops) / math.fsum(bottoms)
    return bootstrapped(value, len(tops), n_groups, sums_R2[:, 0] / sums_R2[:, 1], confidence)


def proportion(
    values: Sequence[float], groups: Sequence[str], resamples: int, seed: int, confidence: float = 0.95
) -> Estimate:
    """Return the mean of values in [0, 1] with the appropriate interval. ``method`` names it.

    Yes/no values with one answer per group get Wilson's interval, all others the bootstrap by group. If all answers are
    0 or all are 1, a bootstrap has no width. Then Wilson's formula is applied to the number of groups, as if the
    answers of a group were one.
    """
    if any(value not in (0, 1) for value in values):
        return bootstrap_mean(values, groups, resamples, seed, confidence)
    found = wilson_proportion(int(sum(values)), len(values), count_groups(groups), confidence)
    return found or bootstrap_mean(values, groups, resamples, seed, confidence)


def wilson_proportion(successes: int, n: int, n_groups: int, confidence: float = 0.95) -> Estimate | None:
    """Return the proportion if Wilson's formula applies as in ``proportion``, or None if a bootstrap is needed.

    Raises:
        ValueError: Not 0 <= successes <= n.
    """
    if n_groups == n:
        return wilson(successes, n, confidence)
    if 0 < successes < n:
        return None
    return wilson_by_group(successes / n if n else 0, n, n_groups, confidence)


def wilson_by_group(value: float, n: int, n_groups: int, confidence: float = 0.95) -> Estimate:
    """Return a metric that is 0 or 1 with Wilson's interval for its groups, as if each were one answer."""
    return replace(wilson(n_groups if value else 0, n_groups, confidence), n=n, method="wilson by group")


def bootstrapped(value: float, n: int, n_groups: int, drawn: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Return a metric with the percentile interval of its bootstrap values.

    Args:
        value: The metric of the actual answers.
        n: Number of answers.
        n_groups: Number of groups. With fewer than 2 there is no interval.
        drawn: The metric of each bootstrap sample. NaN marks samples without a value, which are left out.
        confidence: Confidence level of the interval.
    """
    defined = drawn[~np.isnan(drawn)]
    if n_groups < 2 or not len(defined):
        return Estimate(value, n, None, None, "none", n_groups, confidence)
    low, high = percentile_interval(defined, confidence)
    return Estimate(value, n, low, high, "bootstrap by group", n_groups, confidence)


def _wilson_interval(rate: float, n: int, confidence: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _finite(values: Sequence[float]) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    if not np.isfinite(numbers).all():
        raise ValueError("values must be finite")
    return numbers
