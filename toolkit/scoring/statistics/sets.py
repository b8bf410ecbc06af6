"""Metrics of a set of answers that are not means over its answers, such as mAP, corpus BLEU or AUROC.

Their intervals and differences come from a bootstrap over whole groups, in which the metric is computed again for every
resample.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from toolkit.scoring.statistics.bootstrap import count_groups, drawn_positions
from toolkit.scoring.statistics.intervals import Estimate, bootstrapped, wilson_by_group
from toolkit.scoring.statistics.paired import zero_variance_interval

Part = TypeVar("Part")
"""What a metric needs of one answer."""

Values = Callable[[Sequence[Part]], Mapping[str, float | None]]
"""Parts of a set -> metric -> value, or None if the metric is not defined for the set."""


def set_estimates(
    parts: Sequence[Part],
    groups: Sequence[str],
    values: Values[Part],
    resamples: int,
    seed: int,
) -> dict[str, Estimate]:
    """Return each metric of a set with the percentile interval of a bootstrap over whole groups.

    A resample without a value is left out. The set determines which metrics there are. If a metric is 0 in every
    resample, or 1 in every one, the interval is Wilson's for the groups, as if each were one answer.

    >>> found = set_estimates([1, 2, 3], ["a", "b", "c"], lambda parts: {"most": max(parts) / 3}, 200, 0)
    >>> found["most"].value, found["most"].n, found["most"].groups
    (1.0, 3, 3)

    Args:
        parts: The parts of all answers.
        groups: The group of each answer.
        values: Computes the metrics. A part that a resample draws twice is in its argument twice.
        resamples: Number of bootstrap samples.
        seed: The same seed and groups give the same draws.

    Raises:
        ValueError: The sequences differ in length, or a value is not finite.
    """
    if len(parts) != len(groups):
        raise ValueError(f"{len(parts)} parts, but {len(groups)} groups")
    whole = _finite(values(parts))
    drawn = [_finite(values([parts[i] for i in draw])) for draw in drawn_positions(groups, resamples, seed)]
    found = _estimates(whole, drawn, groups)
    return {
        name: wilson_by_group(one.value, one.n, one.groups)
        if one.value is not None and one.value in (0, 1) and one.low == one.high == one.value
        else one
        for name, one in found.items()
    }


def set_differences(
    before: Sequence[Part],
    after: Sequence[Part],
    groups: Sequence[str],
    values: Values[Part],
    resamples: int,
    seed: int,
) -> dict[str, Estimate]:
    """Return after minus before of each metric, for the same questions in the same order.

    Each resample draws the same groups of both, so that easy and hard questions cancel out. A metric that one of them
    lacks has no difference. Differences that are equal in every resample have the interval of
    ``zero_variance_interval``.

    Raises:
        ValueError: The sequences differ in length, or a value is not finite.
    """
    if not len(before) == len(after) == len(groups):
        raise ValueError(f"{len(before)} and {len(after)} parts, but {len(groups)} groups")

    def change(chosen: NDArray[np.int64]) -> dict[str, float | None]:
        old, new = (_finite(values([parts[i] for i in chosen])) for parts in (before, after))
        return {name: _minus(value, old.get(name)) for name, value in new.items()}

    whole = change(np.arange(len(groups)))
    drawn = [change(draw) for draw in drawn_positions(groups, resamples, seed)]
    found = _estimates(whole, drawn, groups)
    return {
        name: zero_variance_interval(one) if one.low is not None and one.low == one.high else one
        for name, one in found.items()
    }


def _estimates(
    whole: Mapping[str, float | None], drawn: Sequence[Mapping[str, float | None]], groups: Sequence[str]
) -> dict[str, Estimate]:
    n, n_groups = len(groups), count_groups(groups)
    found = {}
    for name, value in whole.items():
        if value is None:
            found[name] = Estimate(None, n, None, None, "none", n_groups)
            continue
        numbers = [math.nan if (one := values.get(name)) is None else one for values in drawn]
        found[name] = bootstrapped(value, n, n_groups, np.array(numbers))
    return found


def _minus(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _finite(found: Mapping[str, float | None]) -> Mapping[str, float | None]:
    for name, value in found.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, or None if it is not defined, got {value}")
    return found
