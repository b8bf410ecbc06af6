"""GRPO: several answers a prompt, judged by the task's rewards, and an update towards the better of a group."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.data.sample import Answer, Sample
from toolkit.data.task import Task
from toolkit.errors import ModelError, TrainingError
from toolkit.evaluation.answers import read_answer
from toolkit.evaluation.context import Context
from toolkit.models import choose_backend
from toolkit.models.backend import Completion, Judge, Policy, TrainingJob
from toolkit.models.lengths import check_lengths
from toolkit.models.loading import architecture_of
from toolkit.models.model_paths import model_source
from toolkit.models.prompts import Prompts
from toolkit.models.vllm import Machine, vllm_refusals
from toolkit.recipe import Grpo, Recipe
from toolkit.runfolder import Record, is_main_process, read_json, write_json
from toolkit.tasks import TASKS
from toolkit.training.image_check import look_first
from toolkit.training.reward_probe import probe
from toolkit.training.rewards import RewardTable, ScoredAnswer, group_statistics, reward_table
from toolkit.training.train import last_checkpoint, rows_for_preflight, train, training_rows
from toolkit.training.trl_settings import optimizer_here

log = logging.getLogger(__name__)
STAGE = "grpo"


def train_grpo(context: Context, *, preflight: bool | None = None) -> Record:
    """Probe, train, and leave the weights in the run folder; see ``context.TrainStage`` and ``train_sft``."""
    recipe, samples = context.recipe, training_rows(context, STAGE)
    grpo = recipe.grpo or Grpo()
    backend, prompts = choose_backend(recipe.model), Prompts.of(recipe, context.images)
    table = rewards_of(recipe)
    check_rewards_apply(prompts.task, table, samples)
    if len(samples) < grpo.prompts_per_step:
        raise TrainingError(
            "training.too_few_prompts",
            f"must be at most the number of training rows, {len(samples)}",
            place="[grpo] prompts_per_step",
            value=grpo.prompts_per_step,
            remedy="Lower prompts_per_step, or add rows.",
        )
    check_rollouts(recipe, backend.name, samples)
    folder, reference = context.run.stage_folder(STAGE), describe_reference(recipe, context.weights)
    kept = folder / "probe.json"

    def prepare(policy: Policy) -> tuple[TrainingJob, Record]:
        processor, most = policy.processor, recipe.model.max_tokens
        lengths = check_lengths(processor, prompts, samples, most, grpo.max_completion_tokens, tell=context.no_step_yet)
        look_first(backend, policy, prompts, samples)
        log.info("grpo: %s", reference)
        if is_main_process() and grpo.probe_prompts and last_checkpoint(folder) is None:
            write_json(kept, probe(backend, policy, prompts, samples, table, recipe))
        job = TrainingJob(
            recipe=recipe,
            rows=prompts.rows(samples),
            count=len(samples),
            folder=folder,
            judge=make_judge(prompts.task, table, samples, grpo.generations),
            longest=rows_for_preflight(lengths, preflight),
        )
        return job, {"lengths": lengths.to_dict()}

    record = train(context, STAGE, backend, prepare)
    return {
        **record,
        "backend": backend.name,
        "optimizer": optimizer_here(grpo),
        "rows": len(samples),
        "rows_left_out_each_epoch": len(samples) % grpo.prompts_per_step,
        "pictures": context.count_pictures(STAGE),
        "probe": read_json(kept) if kept.is_file() else None,
        "kl_reference": reference,
    }


def rewards_of(recipe: Recipe) -> RewardTable:
    """The recipe's rewards with their weights."""
    return reward_table(TASKS[recipe.dataset.task], recipe.reward_weights, recipe.rewards.custom, Path())


def check_rewards_apply(task: Task, table: RewardTable, samples: Sequence[Sample]) -> None:
    """Every row must be judged by something; ``format`` judges every row, so with it there is nothing to look for.

    Raises:
        RewardError: no reward of the recipe applies to some row; it names the row.
    """
    if "format" in table.weights:
        return
    for sample in samples:
        table.score(sample, task.parse(task.target(sample), sample))


def check_rollouts(recipe: Recipe, backend: str, samples: Sequence[Sample]) -> None:
    """Before a model is loaded: can vLLM write the completions, where it is asked to?

    Raises:
        ModelError: it cannot; every reason is told.
    """
    if recipe.grpo is None or recipe.grpo.rollouts != "vllm":
        return
    architecture = architecture_of(model_source(recipe.model), recipe.model)
    reasons = vllm_refusals(recipe, Machine.here(), architecture, max(len(sample.images) for sample in samples))
    if backend != "unsloth" and recipe.model.backend != "hf":
        reasons.append(f"it needs Unsloth, but this run's backend is {backend}")
    if reasons:
        raise ModelError(
            "training.vllm_unsupported",
            f"vLLM cannot generate the completions: {'; '.join(reasons)}",
            place="[grpo] rollouts",
            value=recipe.grpo.rollouts,
            remedy='Set rollouts = "transformers".',
        )


def make_judge(task: Task, table: RewardTable, samples: Sequence[Sample], generations: int) -> Judge:
    """Row numbers and completions -> each reward's value, with its spread within groups and the unreadable share."""

    def score(
        numbers: Sequence[int], completions: Sequence[Completion]
    ) -> tuple[list[Mapping[str, float | None]], dict[str, float]]:
        asked = [samples[number] for number in numbers]
        answers = [read_answer(task, *pair) for pair in zip(asked, completions, strict=True)]
        scored = [table.score(*pair) for pair in zip(asked, answers, strict=True)]
        return [one.components for one in scored], _figures(scored, answers, generations)

    return Judge(table.weights, score)


def describe_reference(recipe: Recipe, start: Path | None) -> str:
    """What the KL term is measured against, in words for the log and the record."""
    grpo = recipe.grpo or Grpo()
    if grpo.beta == 0:
        return "beta = 0: no KL term, no reference model"
    if start is not None:
        return f"beta = {grpo.beta}: KL against the model as this stage found it ({start.parent.name})"
    return f"beta = {grpo.beta}: KL against the base model"


def _figures(scored: Sequence[ScoredAnswer], answers: Sequence[Answer], generations: int) -> dict[str, float]:
    """TRL logs means; what it lacks is each reward's spread within the groups, and what could not be read."""
    starts = range(0, len(answers), generations)
    found = group_statistics(
        [scored[start : start + generations] for start in starts],
        [answers[start : start + generations] for start in starts],
    )
    return {name: value for name, value in found.to_log().items() if not name.endswith(("/mean", "/truncated"))}
