"""The learning signal of rewards: statistics of the groups that GRPO compares, and the probe before its first step.

Axes: P prompts, G generations (completions) per prompt.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from statistics import fmean, stdev

import torch

from toolkit.data.sample import Answer, Sample
from toolkit.errors import TrainingError, warn
from toolkit.evaluation.answers import read_answer
from toolkit.models import Backend
from toolkit.models.backend import Policy, Sampling
from toolkit.models.prompts import Prompts
from toolkit.recipe import Grpo, Recipe
from toolkit.training.results import GroupStatistics, ProbeResult, RewardSummary
from toolkit.training.rewards import RewardScore, RewardTable

log = logging.getLogger(__name__)


def group_statistics(
    scored_PG: Sequence[Sequence[RewardScore]], answers_PG: Sequence[Sequence[Answer]]
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


def probe(
    backend: Backend,
    policy: Policy,
    prompts: Prompts,
    samples: Sequence[Sample],
    table: RewardTable,
    recipe: Recipe,
) -> ProbeResult:
    """Sample completions of a few prompts with GRPO's settings, and return the statistics of their rewards.

    The random state of the training does not change.

    Raises:
        TrainingError: Every group has zero variance, or too many completions are truncated, so GRPO could learn
            nothing. With ``probe_on_failure = "report"`` this is a warning, and ``failure`` in the result.
    """
    grpo = recipe.grpo_settings
    chosen = _evenly_spaced(samples, grpo.probe_prompts)
    sampling = Sampling(grpo.max_completion_tokens, grpo.temperature, grpo.top_p, grpo.top_k, grpo.generations)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.run.seed_of_training)
        completions_PG = [backend.generate(policy, [prompts.row(sample)], sampling)[0] for sample in chosen]
    answers_PG = [
        [read_answer(prompts.task, sample, completion) for completion in completions_G]
        for sample, completions_G in zip(chosen, completions_PG, strict=True)
    ]
    scored_PG = [
        [table.score(sample, answer) for answer in answers_G]
        for sample, answers_G in zip(chosen, answers_PG, strict=True)
    ]
    statistics = group_statistics(scored_PG, answers_PG)
    log.info("grpo probe: %s", _describe(statistics, len(chosen), grpo.generations))
    failure = _failure(statistics, grpo, len(chosen) * grpo.generations)
    if failure is not None and grpo.probe_on_failure == "stop":
        raise failure
    if failure is not None:
        warn(failure.code, failure.rule, place=failure.place, value=failure.value, remedy=failure.remedy)
    figures = {field.name: getattr(statistics, field.name) for field in fields(statistics)}
    return ProbeResult(**figures, failure=None if failure is None else str(failure))


def _summarise(rewards_PG: Sequence[Sequence[float | None]]) -> RewardSummary:
    groups = [values for rewards_G in rewards_PG if (values := [reward for reward in rewards_G if reward is not None])]
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


def _evenly_spaced(samples: Sequence[Sample], count: int) -> list[Sample]:
    count = min(count, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]


def _describe(statistics: GroupStatistics, prompts: int, generations: int) -> str:
    total, count = statistics.total, prompts * generations
    return (
        f"{prompts} prompts x {generations} completions: reward mean {total.mean:.3f}, standard deviation within a "
        f"group {total.std:.3f}, zero-variance groups {_of(total.zero_variance, prompts)}, truncated "
        f"{_of(statistics.truncated, count)}, unreadable {_of(statistics.unreadable, count)}"
    )


def _of(fraction: float | None, count: int) -> str:
    """Return a fraction of a count as both numbers. Percent would hide a few of many.

    >>> _of(0.003, 1000)
    '3 of 1,000'
    """
    return "none of 0" if fraction is None else f"{round(fraction * count):,} of {count:,}"


def _failure(statistics: GroupStatistics, grpo: Grpo, count: int) -> TrainingError | None:
    """Return the reason why GRPO could learn nothing from these answers, or None."""
    if statistics.truncated > grpo.probe_max_truncated:
        return TrainingError(
            "training.probe_truncated",
            f"at most {grpo.probe_max_truncated:.0%} of the probe's completions may reach the token limit",
            place="[grpo] max_completion_tokens",
            value=f"{_of(statistics.truncated, count)} at {grpo.max_completion_tokens} tokens",
            remedy="Raise max_completion_tokens, or run (more) SFT first.",
        )
    if statistics.total.zero_variance == 1:
        return TrainingError(
            "training.probe_zero_variance",
            "completions of a prompt must differ in reward, but every group has zero variance",
            place="[grpo] probe",
            value=f"reward mean {statistics.total.mean:.3f}, unreadable: {dict(statistics.problems)}",
            remedy="Train SFT longer, raise temperature or generations, or weight a reward that gives partial credit.",
        )
    return None
