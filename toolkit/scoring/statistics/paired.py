"""Paired difference between two evaluations of the same questions.

Two separate intervals ignore that both evaluations have the same easy and hard questions. Differences per question
remove this common part, so a smaller improvement can be detected with the same held-out split.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from toolkit.scoring.statistics.intervals import Estimate, bootstrap_mean, wilson


@dataclass(frozen=True, slots=True)
class Paired:
    """After minus before, on the same questions.

    ``p_value`` is from McNemar's exact test if all values are 0 or 1, otherwise None. The test treats questions as
    independent, which several questions about one image are not. The interval of ``difference`` resamples whole groups.
    """

    difference: Estimate
    before: float | None
    after: float | None
    better: int
    """Questions whose value rose."""
    worse: int
    """Questions whose value fell."""
    p_value: float | None

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0 and McNemar's test, if there is one, agrees.

        With few changed answers the bootstrap is overconfident: five better and none worse gives an interval above 0 at
        p = 0.0625.
        """
        low, high = self.difference.low, self.difference.high
        excludes_0 = low is not None and high is not None and (low > 0 or high < 0)
        return excludes_0 and (self.p_value is None or self.p_value < 1 - self.difference.confidence)


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    groups: Sequence[str],
    resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Paired:
    """Return the mean of ``after - before`` with a bootstrap interval by group.

    Raises:
        ValueError: The sequences differ in length, or a value is not finite.
    """
    changes = [new - old for old, new in zip(before, after, strict=True)]
    difference = bootstrap_mean(changes, groups, resamples, seed, confidence)
    if changes and len(set(changes)) == 1:
        difference = zero_variance_interval(difference)
    better, worse = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    binary = bool(changes) and all(value in (0, 1) for value in (*before, *after))
    return Paired(
        difference=difference,
        before=math.fsum(before) / len(before) if changes else None,
        after=math.fsum(after) / len(after) if changes else None,
        better=better,
        worse=worse,
        p_value=mcnemar_exact(better, worse) if binary else None,
    )


def zero_variance_interval(found: Estimate) -> Estimate:
    """Return an interval for changes that are all equal, where the bootstrap has no variance.

    Wilson's upper limit for 0 of the groups bounds the proportion of groups that could have changed otherwise. Each of
    them could have moved the mean by its weight.
    """
    bound, value = wilson(0, found.groups, found.confidence).high, found.value
    if bound is None or value is None or found.low is None:
        return found
    return replace(found, low=max(-1.0, value - bound), high=min(1.0, value + bound), method="wilson of no change")


def mcnemar_exact(better: int, worse: int) -> float:
    """Return the two-sided exact p-value of McNemar's test (1947). It is 1 if no answer changed.

    >>> mcnemar_exact(5, 0)  # 2 / 2**5
    0.0625
    """
    # Twice the lower tail of a fair coin, in integers: powers of 2 underflow as floats at 1,075 changed answers.
    changed = better + worse
    term, tail = 1, 0
    for count in range(min(better, worse) + 1):
        tail += term
        term = term * (changed - count) // (count + 1)
    return min(1.0, tail / 2 ** (changed - 1)) if changed else 1.0
