"""The learning signal of a GRPO step: mean and standard deviation of rewards within the groups that GRPO compares.

Axes: P prompts, G generations (completions) of a prompt.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from toolkit.data.sample import Answer
from toolkit.training.rewards.table import ScoredAnswer


@dataclass(frozen=True, slots=True)
class RewardSummary:
    """One reward over the prompts of a step. Values are None if the reward applied to no completion."""

    n: int
    """Number of completions that the reward applied to."""
    mean: float | None
    std: float | None
    """Mean over the groups of the standard deviation within a group (divisor G - 1, as TRL's ``reward_std``)."""
    zero_variance: float | None
    """Fraction of the groups whose completions all have the same reward. Their advantages and gradients are 0."""

    def to_record(self) -> dict[str, float | None]:
        """Return the values under their names in the run folder."""
        return {"n": self.n, "mean": self.mean, "spread": self.std, "flat": self.zero_variance}


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """The rewards of one step."""

    total: RewardSummary
    components: Mapping[str, RewardSummary]
    unreadable: float
    """Fraction of the completions from which no answer could be parsed."""
    truncated: float
    """Fraction of the completions that reached the token limit."""
    problems: Mapping[str, int]
    """Maps the reason why no answer could be parsed to the number of completions, the most frequent first."""

    def to_log(self) -> dict[str, float]:
        """Return the metrics of the log, such as ``reward/letter/mean``. Rewards that never applied are omitted."""
        log = {"reward/unreadable": self.unreadable, "reward/truncated": self.truncated}
        for name, summary in {"total": self.total, **self.components}.items():
            parts = {part: value for part, value in summary.to_record().items() if part != "n"}
            log |= {f"reward/{name}/{part}": value for part, value in parts.items() if value is not None}
        return log

    def to_record(self) -> dict[str, Any]:
        """Return the statistics for probe.json."""
        return {
            "total": self.total.to_record(),
            "components": {name: summary.to_record() for name, summary in self.components.items()},
            "unreadable": self.unreadable,
            "truncated": self.truncated,
            "problems": self.problems,
        }


def group_statistics(
    scored_PG: Sequence[Sequence[ScoredAnswer]], answers_PG: Sequence[Sequence[Answer]]
) -> GroupStatistics:
    """Return the statistics of a step.

    Args:
        scored_PG: Scores, one row per prompt.
        answers_PG: The parsed answers, in the same shape.

    Raises:
        ValueError: There is no completion, or the two arrays have different shapes.
    """
    answers = [answer for answers_G in answers_PG for answer in answers_G]
    if not answers or [len(row_G) for row_G in scored_PG] != [len(row_G) for row_G in answers_PG]:
        raise ValueError("scores and answers must have the same shape, with at least one completion")
    names = scored_PG[0][0].components
    problems = Counter(answer.problem for answer in answers if answer.problem is not None)
    return GroupStatistics(
        total=_summarise([[scored.total for scored in scored_G] for scored_G in scored_PG]),
        components={
            name: _summarise([[scored.components[name] for scored in scored_G] for scored_G in scored_PG])
            for name in names
        },
        unreadable=problems.total() / len(answers),
        truncated=sum(answer.truncated for answer in answers) / len(answers),
        problems=dict(problems.most_common()),
    )


def _summarise(rewards_PG: Sequence[Sequence[float | None]]) -> RewardSummary:
    groups = [values for rewards_G in rewards_PG if (values := [one for one in rewards_G if one is not None])]
    values = [value for group in groups for value in group]
    if not values:
        return RewardSummary(0, None, None, None)
    return RewardSummary(
        n=len(values),
        mean=fmean(values),
        std=fmean(stdev(group) if len(group) > 1 else 0.0 for group in groups),
        # Sums of weighted rewards may differ in their last bits although the completions earned the same.
        zero_variance=sum(math.isclose(min(group), max(group), abs_tol=1e-9) for group in groups) / len(groups),
    )
