"""The probe before GRPO's first step: whether the rewards of sampled completions give a learning signal."""

import logging
from collections.abc import Sequence

import torch

from toolkit.data.sample import Sample
from toolkit.errors import TrainingError, warn
from toolkit.evaluation.answers import read_answer
from toolkit.models import Backend
from toolkit.models.backend import Policy, Sampling
from toolkit.models.prompts import Prompts
from toolkit.recipe import Grpo, Recipe
from toolkit.training.results import ProbeResult
from toolkit.training.rewards import GroupStatistics, RewardTable, group_statistics

log = logging.getLogger(__name__)


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
    grpo = recipe.grpo or Grpo()
    chosen = _evenly_spaced(samples, grpo.probe_prompts)
    sampling = Sampling(grpo.max_completion_tokens, grpo.temperature, grpo.top_p, grpo.top_k, grpo.generations)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.run.seed)
        completions_PG = [backend.generate(policy, [prompts.row(sample)], sampling)[0] for sample in chosen]
    answers_PG = [
        [read_answer(prompts.task, sample, completion) for completion in completions_G]
        for sample, completions_G in zip(chosen, completions_PG, strict=True)
    ]
    scored_PG = [
        [table.score(sample, answer) for answer in answers_G]
        for sample, answers_G in zip(chosen, answers_PG, strict=True)
    ]
    found = group_statistics(scored_PG, answers_PG)
    log.info("grpo probe: %s", _describe(found, len(chosen), grpo.generations))
    failure = _failure(found, grpo)
    if failure is not None and grpo.probe_on_failure == "stop":
        raise failure
    if failure is not None:
        warn(failure.code, failure.rule, place=failure.place, value=failure.value, remedy=failure.remedy)
    return ProbeResult(
        total=found.total,
        components=found.components,
        unreadable=found.unreadable,
        truncated=found.truncated,
        problems=found.problems,
        failure=None if failure is None else str(failure),
    )


def _evenly_spaced(samples: Sequence[Sample], count: int) -> list[Sample]:
    count = min(count, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]


def _describe(found: GroupStatistics, prompts: int, generations: int) -> str:
    total = found.total
    return (
        f"{prompts} prompts x {generations} completions: reward mean {total.mean:.3f}, standard deviation within a "
        f"group {total.std:.3f}, zero-variance groups {total.zero_variance:.0%}, truncated {found.truncated:.0%}, "
        f"unreadable {found.unreadable:.0%}"
    )


def _failure(found: GroupStatistics, grpo: Grpo) -> TrainingError | None:
    """Return the reason why GRPO could learn nothing from these answers, or None."""
    if found.truncated > grpo.probe_max_truncated:
        return TrainingError(
            "training.probe_truncated",
            f"at most {grpo.probe_max_truncated:.0%} of the probe's completions may reach the token limit",
            place="[grpo] max_completion_tokens",
            value=f"{found.truncated:.0%} at {grpo.max_completion_tokens} tokens",
            remedy="Raise max_completion_tokens, or run (more) SFT first.",
        )
    if found.total.zero_variance == 1:
        return TrainingError(
            "training.probe_zero_variance",
            "completions of a prompt must differ in reward, but every group has zero variance",
            place="[grpo] probe",
            value=f"reward mean {found.total.mean:.3f}, unreadable: {dict(found.problems)}",
            remedy="Train SFT longer, raise temperature or generations, or weight a reward that gives partial credit.",
        )
    return None
