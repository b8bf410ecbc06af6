"""What GRPO can learn from a step: mean and spread of the rewards inside the groups that it compares."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from toolkit.data.sample import Answer
from toolkit.training.rewards.table import ScoredAnswer


@dataclass(frozen=True, slots=True)
class RewardSummary:
    """One reward over the prompts of a step; None where it applied to nothing."""

    n: int
    """Completions that it applied to."""
    mean: float | None
    spread: float | None
    """Mean over the groups of the standard deviation inside a group (divisor G - 1, as TRL's ``reward_std``)."""
    flat: float | None
    """Share of the groups whose completions all earned the same: they teach nothing."""


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """The rewards of one step, ready for the log."""

    total: RewardSummary
    components: Mapping[str, RewardSummary]
    unreadable: float
    """Share of the completions that no answer could be read from."""
    truncated: float
    """Share of the completions that ran into the token limit."""
    problems: Mapping[str, int]
    """Why answers could not be read -> how many, the most frequent first."""

    def to_log(self) -> dict[str, float]:
        """Flat names, such as ``reward/letter/mean``; what applied to nothing is left out."""
        log = {"reward/unreadable": self.unreadable, "reward/truncated": self.truncated}
        for name, spread in {"total": self.total, **self.components}.items():
            parts = {"mean": spread.mean, "spread": spread.spread, "flat": spread.flat}
            log |= {f"reward/{name}/{part}": value for part, value in parts.items() if value is not None}
        return log


def group_statistics(
    scored_PG: Sequence[Sequence[ScoredAnswer]], answers_PG: Sequence[Sequence[Answer]]
) -> GroupStatistics:
    """Statistics of prompts x generations, a row for the completions of one prompt.

    Raises:
        ValueError: there is no completion, or the two arrays have different shapes.
    """
    answers = [answer for answers_G in answers_PG for answer in answers_G]
    if not answers or [len(row_G) for row_G in scored_PG] != [len(row_G) for row_G in answers_PG]:
        raise ValueError("scores and answers must have the same shape, with at least one completion")
    names = scored_PG[0][0].components
    problems = Counter(answer.problem for answer in answers if answer.problem is not None)
    return GroupStatistics(
        total=_spread([[scored.total for scored in scored_G] for scored_G in scored_PG]),
        components={
            name: _spread([[scored.components[name] for scored in scored_G] for scored_G in scored_PG])
            for name in names
        },
        unreadable=problems.total() / len(answers),
        truncated=sum(answer.truncated for answer in answers) / len(answers),
        problems=dict(problems.most_common()),
    )


def _spread(rewards_PG: Sequence[Sequence[float | None]]) -> RewardSummary:
    groups = [values for row in rewards_PG if (values := [value for value in row if value is not None])]
    values = [value for group in groups for value in group]
    if not values:
        return RewardSummary(0, None, None, None)
    return RewardSummary(
        n=len(values),
        mean=fmean(values),
        spread=fmean(stdev(group) if len(group) > 1 else 0.0 for group in groups),
        flat=sum(math.isclose(min(group), max(group), abs_tol=1e-9) for group in groups) / len(groups),
    )
