"""GRPO: several completions per prompt, scored by the task's rewards, and a policy update towards the better ones.

This file reads from top to bottom: the stage, the checks before it, the settings of ``trl.GRPOConfig`` with the loss,
the trainer, the rewards, the rows. The private methods of TRL's trainer that the toolkit overrides are in
``grpo_trainer``, the loop with OOM recovery and resume is in ``train``.

Axes: P prompts of an optimizer step, G generations (completions) per prompt, N = P x G completions of a step. In arrays
over N, the G completions of a prompt follow each other.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from trl import GRPOConfig

from toolkit.data.sample import Answer, Sample
from toolkit.data.task import Task
from toolkit.errors import ModelError, TrainingError, warn
from toolkit.evaluation.answers import read_answer
from toolkit.evaluation.stage_context import Context
from toolkit.models import Backend, choose_backend
from toolkit.models.backend import Completion, Policy, RewardScorer, Row, RowSource, TrainingJob
from toolkit.models.flops import register_usage_hooks
from toolkit.models.lengths import TokenLengths
from toolkit.models.loading import architecture_of
from toolkit.models.model_paths import model_source
from toolkit.models.oom import recipe_sizes
from toolkit.models.packing import not_packed_reasons, packed_completions, packed_sizes
from toolkit.models.pixel_layout import check_grpo_supports
from toolkit.models.prompts import Prompts
from toolkit.models.vision_cache import cache_frozen_vision
from toolkit.models.vllm import Machine, vllm_unsupported_reasons
from toolkit.recipe import Grpo, Recipe
from toolkit.runfolder import from_json, is_main_process, read_json, world_size, write_json
from toolkit.runfolder.usage import note_bypass
from toolkit.training.distributed import per_process
from toolkit.training.grpo_trainer import PolicyTrainer, RolloutTrainer
from toolkit.training.image_processor_cache import rollout_processor
from toolkit.training.preflight import check_rows, preflight_rows
from toolkit.training.results import GrpoResult, ProbeResult, Resampling
from toolkit.training.resume import last_checkpoint
from toolkit.training.reward_statistics import group_statistics, probe
from toolkit.training.rewards import RewardScore, RewardTable, check_rewards_apply, recipe_rewards
from toolkit.training.train import logged_sum, train, training_rows
from toolkit.training.trl_trainer import (
    build_trainer,
    common_settings,
    finish_trainer,
    local_optimizer,
    set_learning_rates,
)
from toolkit.training.validation import Validator

log = logging.getLogger(__name__)
STAGE = "grpo"


def train_grpo(context: Context, *, preflight: bool | None = None) -> GrpoResult:
    """Probe the rewards, train, and save the weights to the run folder. See ``evaluation.stage_context``.

    Args:
        context: The run.
        preflight: Whether to make a preflight step on the longest rows first. None: on a GPU.

    Raises:
        TrainingError: Fewer training rows than ``prompts_per_step``, or the rewards give no learning signal.
        RewardError: No reward applies to some row.
        ModelError: vLLM is requested but not supported here.
    """
    recipe, samples = context.recipe, training_rows(context, STAGE)
    grpo = recipe.grpo_settings
    backend, prompts = choose_backend(recipe.model), Prompts.of(recipe, context.images)
    table = recipe_rewards(recipe)
    check_rewards_apply(prompts.task, table, samples)
    validator = Validator.of(context, STAGE, prompts, table)
    _check_enough_rows(len(samples), grpo)
    check_vllm_rollouts(recipe, backend.name, samples)
    folder, start = context.run.stage_folder(STAGE), context.weights
    reference = describe_reference(recipe, None if start is None else context.run.relative(start))
    probe_file = folder / "probe.json"

    def prepare(policy: Policy) -> tuple[TrainingJob, TokenLengths]:
        packing = _packs_prompts(recipe, backend.name, policy)
        check_grpo_supports(policy.processor, policy.model.config.model_type)
        lengths = check_rows(context, backend, policy, prompts, samples, grpo.max_completion_tokens)
        log.info("grpo: %s", reference)
        # A resumed stage keeps the probe of its first start, which measured the policy before any update.
        if is_main_process() and grpo.probe_prompts and last_checkpoint(folder) is None:
            write_json(probe_file, probe(backend, policy, prompts, samples, table, recipe))
        job = TrainingJob(
            recipe=recipe,
            rows=prompts.rows(samples),
            count=len(samples),
            folder=folder,
            scorer=make_reward_scorer(prompts.task, table, samples, grpo.generations),
            longest=preflight_rows(lengths.longest, preflight),
            sizes=packed_sizes(recipe) if packing else None,
            packing=packing,
        )
        return job, lengths.tokens

    figures, lengths = train(context, STAGE, backend, prepare, build_grpo, validator)
    resampling = Resampling(*(logged_sum(context, STAGE, f"resample/{name}") for name in ("rollouts", "groups")))
    if grpo.resample:
        log.info("grpo: %d zero-variance groups replaced in %d extra rollouts", resampling.groups, resampling.rollouts)
    return GrpoResult(
        training=figures,
        lengths=lengths,
        backend=backend.name,
        optimizer=local_optimizer(grpo),
        rows=len(samples),
        images=context.count_images(STAGE),
        rows_left_out_each_epoch=len(samples) % grpo.prompts_per_step,
        probe=saved_probe(probe_file),
        kl_reference=reference,
        resampling=resampling,
    )


def _packs_prompts(recipe: Recipe, backend: str, policy: Policy) -> bool:
    """Return whether the completions of a prompt are in one row, and log it.

    Raises:
        ModelError: The recipe requests it, but it is not supported.
    """
    reasons = not_packed_reasons(recipe, backend, policy.model.config.model_type)
    if reasons:
        note_bypass("packed prompts", "; ".join(reasons))
    else:
        log.info(
            "grpo: a prompt and %d of its completions are packed into one row", packed_completions(recipe.grpo_settings)
        )
    return not reasons


def saved_probe(file: Path) -> ProbeResult | None:
    """Return the result of the probe that the stage saved. None: there was no probe, or the file is corrupt."""
    try:
        return from_json(ProbeResult, read_json(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # The training is finished, and a missing probe must not discard it.
        rule = "the result of the probe should be complete. It is left out of the results"
        warn("training.probe_damaged", rule, place=file, value=str(error))
        return None


def _check_enough_rows(rows: int, grpo: Grpo) -> None:
    if rows < grpo.prompts_per_step:
        raise TrainingError(
            "training.too_few_prompts",
            f"must be at most the number of training rows, {rows}",
            place="[grpo] prompts_per_step",
            value=grpo.prompts_per_step,
            remedy="Lower prompts_per_step, or add rows.",
        )


def check_vllm_rollouts(recipe: Recipe, backend: str, samples: Sequence[Sample]) -> None:
    """Check before a model is loaded that vLLM can generate the completions, if the recipe requests it.

    Raises:
        ModelError: vLLM cannot. The error lists every reason.
    """
    if recipe.grpo is None or recipe.grpo.rollouts != "vllm":
        return
    architecture = architecture_of(model_source(recipe.model), recipe.model)
    most_images = max(len(sample.images) for sample in samples)
    reasons = vllm_unsupported_reasons(recipe, Machine.here(), architecture, most_images)
    # vllm_unsupported_reasons already has a reason for backend = "hf". Here, "auto" has become hf on this machine.
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


# The settings of trl.GRPOConfig, with the loss.


def grpo_settings(policy: Policy, job: TrainingJob) -> dict[str, object]:
    """Return the keyword arguments of ``trl.GRPOConfig``.

    One optimizer step uses exactly one rollout of P x G completions: TRL's ``generation_batch_size`` equals
    micro-batch x accumulation. The policy that is updated is then the policy that generated, so TRL takes the detached
    log-probabilities of the update as the old ones. Their ratio is 1, and ``epsilon`` clips nothing. With vLLM, which
    has kernels of its own, TRL multiplies the loss by an importance ratio of the two policies.
    """
    grpo, sizes = job.recipe.grpo_settings, job.sizes or recipe_sizes(job.recipe, "grpo")
    # TRL normalises the rewards of a group on one process, so a group must not be divided between processes.
    per_process(grpo.prompts_per_step, "[grpo] prompts_per_step")
    return {
        **common_settings(job, grpo, grpo.epochs),
        "learning_rate": grpo.learning_rate,
        "max_grad_norm": grpo.max_grad_norm,
        "per_device_train_batch_size": sizes.micro_batch,
        "gradient_accumulation_steps": per_process(sizes.accumulation, "[grpo] forward passes a step"),
        "num_generations": grpo.generations,
        "generation_batch_size": grpo.completions_per_step,
        "max_completion_length": grpo.max_completion_tokens,
        "temperature": grpo.temperature,
        "top_p": grpo.top_p,
        "top_k": grpo.top_k,
        # With beta = 0 TRL loads no reference model and adds no KL term.
        "beta": grpo.beta,
        "epsilon": grpo.epsilon,
        "epsilon_high": grpo.epsilon if grpo.epsilon_high is None else grpo.epsilon_high,
        # How token losses are averaged. "dapo": over all completion tokens of the step. "grpo": per completion, which
        # gives tokens of short completions more weight. "bnpo": over the tokens of a micro-batch, so the micro-batch
        # size changes the update. "dr_grpo": by a constant, the completion limit.
        "loss_type": grpo.loss,
        "importance_sampling_level": grpo.importance,
        # advantages_PG = (rewards_PG - mean over G) / (standard deviation + 1e-4). "group": the deviation within the
        # group. "batch": over all P x G. "none": no division. A zero-variance group has advantage 0 and no gradient.
        "scale_rewards": grpo.scale_rewards,
        # A truncated completion earns the reward of an unfinished answer. Masking removes its tokens from the loss.
        "mask_truncated_completions": grpo.mask_truncated,
        "generation_kwargs": _generation_settings(policy, grpo, preflight=job.preflight) or None,
        "reward_weights": list(job.scorer.weights.values()) if job.scorer else None,
        "remove_unused_columns": False,
        "log_completions": False,
    }


def _generation_settings(policy: Policy, grpo: Grpo, *, preflight: bool) -> dict[str, object]:
    """Return the options that TRL passes to ``generate``. Completions of a preflight step run to the token limit."""
    settings: dict[str, object] = {"suppress_tokens": list(policy.forbidden)} if policy.forbidden else {}
    return {**settings, "min_new_tokens": grpo.max_completion_tokens} if preflight else settings


def describe_reference(recipe: Recipe, start: str | None) -> str:
    """Return what the KL term is measured against, in words for the log and the record.

    Args:
        recipe: The recipe, with a section [grpo].
        start: The folder of the weights that the stage starts from, as records store it. None: the base model.
    """
    beta = recipe.grpo_settings.beta
    if beta == 0:
        return "beta = 0: no KL term, no reference model"
    if start is not None:
        return f"beta = {beta}: KL against the model at the start of the stage ({start})"
    return f"beta = {beta}: KL against the base model"


# The trainer.


def build_grpo(backend: Backend, policy: Policy, job: TrainingJob) -> Any:
    """Return TRL's GRPOTrainer with the recipe's settings and the task's rewards.

    Raises:
        TrainingError: The library rewrote a setting, or the job has no reward scorer.
        ModelError: The backend cannot train, or trl was imported before the library that replaces its trainers.
    """
    traits = backend.prepare_training(policy, job.recipe, "grpo")
    if traits.replaces_trl:
        _check_trl_replaced()
    if job.scorer is None:
        raise TrainingError("training.reward_scorer_missing", "GRPO must have a reward scorer")
    grpo = job.recipe.grpo_settings
    if grpo.resample and world_size() > 1:
        rule, remedy = "must be 0 with several processes, which make the same rollouts", "Start one process."
        raise TrainingError(
            "training.resample_processes", rule, place="[grpo] resample", value=grpo.resample, remedy=remedy
        )
    settings = {**grpo_settings(policy, job), **traits.changed_settings}
    if job.preflight and settings.get("use_vllm"):  # completions run to the limit, as in ``_generation_settings``
        vllm_settings = traits.changed_settings["generation_kwargs"]
        settings["generation_kwargs"] = {**vllm_settings, "min_tokens": grpo.max_completion_tokens}
    # The data loader prefetches the rows of the next step while the rows of this step are still in use.
    open_rows = (2 + grpo.resample) * grpo.prompts_per_step
    trainer_class = RolloutTrainer if traits.replaces_trl else PolicyTrainer
    trainer = build_trainer(
        trainer_class,
        GRPOConfig(**settings),
        policy,
        job,
        reward_funcs=_RewardFunctions(job.scorer, policy).functions(),
        train_dataset=_prompt_dataset(job.rows, job.count, open_rows),
        processing_class=rollout_processor(policy.processor, open_rows * job.recipe.images.max_per_question),
    )
    if trainer.ref_model is not None:  # full fine-tuning with a KL term; with LoRA, TRL switches adapters instead
        register_usage_hooks(trainer.ref_model)
    trainer.rollout_limit = job.rollout_limit
    trainer.packing = job.packing
    trainer.vision_cache = cache_frozen_vision(policy.model)
    trainer.skip_zero_variance = _can_skip_zero_variance(trainer, job, replaces_trl=traits.replaces_trl)
    trainer.resample = 0 if job.preflight else grpo.resample  # rewards of a preflight step are all 0
    set_learning_rates(trainer, grpo)
    return finish_trainer(trainer, settings, policy, job, count_flops=traits.count_flops)


def _can_skip_zero_variance(trainer: Any, job: TrainingJob, *, replaces_trl: bool) -> bool:
    """Return whether the update may leave out completions without an advantage."""
    grpo = job.recipe.grpo_settings
    if grpo.beta > 0 or getattr(trainer, "aux_loss_enabled", False):  # terms of the loss that need every completion
        return False
    if job.preflight:  # it must measure every row
        return False
    reason = ""
    if world_size() > 1:
        reason = "all processes take part in each backward pass"
    # Unsloth computes gradients in the forward pass, so multiplying the loss of a part has no effect.
    elif replaces_trl and grpo.loss not in ("dapo", "cispo"):
        reason = f'Unsloth computes gradients of loss = "{grpo.loss}" in the forward pass'
    if reason:
        note_bypass("update without zero-variance groups", reason)
    return not reason


def _check_trl_replaced() -> None:
    parent = RolloutTrainer.__mro__[1]
    if not parent.__name__.startswith("Unsloth"):
        raise ModelError(
            "model.trl_imported_before_unsloth",
            "unsloth must be imported before trl, because it replaces trl's trainers",
            place="[model] backend",
            value=parent.__qualname__,
            remedy='Use the command line, import unsloth first, or set backend = "hf".',
        )


# The rewards.


def make_reward_scorer(task: Task, table: RewardTable, samples: Sequence[Sample], generations: int) -> RewardScorer:
    """Return a scorer from the row numbers and completions of a step (N) to the value of each reward."""

    def score(
        numbers: Sequence[int], completions: Sequence[Completion]
    ) -> tuple[list[Mapping[str, float | None]], dict[str, float]]:
        samples_N = [samples[number] for number in numbers]
        answers_N = [read_answer(task, *pair) for pair in zip(samples_N, completions, strict=True)]
        scored_N = [table.score(*pair) for pair in zip(samples_N, answers_N, strict=True)]
        return [scored.components for scored in scored_N], _group_metrics(scored_N, answers_N, generations)

    return RewardScorer(table.weights, score)


def _group_metrics(scored_N: Sequence[RewardScore], answers_N: Sequence[Answer], generations: int) -> dict[str, float]:
    """Return the metrics that TRL does not log: deviation within groups, zero-variance groups, unreadable answers.

    TRL logs the mean of each reward and the fraction of truncated completions.
    """
    starts = range(0, len(answers_N), generations)
    scored_PG = [scored_N[start : start + generations] for start in starts]
    answers_PG = [answers_N[start : start + generations] for start in starts]
    metrics = group_statistics(scored_PG, answers_PG).to_log()
    return {name: value for name, value in metrics.items() if not name.endswith(("/mean", "/truncated"))}


class _RewardFunctions:
    """The reward functions for TRL, one per reward. The first one that TRL calls scores the completions for all."""

    def __init__(self, scorer: RewardScorer, policy: Policy) -> None:
        self.scorer, self.policy = scorer, policy
        self._scored_ids: Any = None
        self._scores: list[Mapping[str, float | None]] = []

    def functions(self) -> list[Callable[..., list[float | None]]]:
        """Return one function per reward. TRL logs a reward under the name of its function."""
        return [self._function(name) for name in self.scorer.weights]

    def _function(self, name: str) -> Callable[..., list[float | None]]:
        def reward(
            completions: list[Any],
            completion_ids: list[list[int]],
            index: list[int],
            log_metric: Callable[[str, float], None],
            **_: Any,
        ) -> list[float | None]:
            # TRL passes the same list object to every reward function of a step.
            if self._scored_ids is not completion_ids:
                read = [self._read(text, ids) for text, ids in zip(completions, completion_ids, strict=True)]
                self._scores, metrics = self.scorer.score(index, read)
                self._scored_ids = completion_ids
                for metric, value in metrics.items():
                    log_metric(metric, value)
            return [score[name] for score in self._scores]

        reward.__name__ = name
        return reward

    def _read(self, completion: str | list[Mapping[str, str]], ids: list[int]) -> Completion:
        # Unsloth passes completions of prompts with images as text (models/rl_replacements.py), TRL as a conversation.
        text = completion if isinstance(completion, str) else completion[0]["content"]
        return Completion(self.policy.turn_end.completed(text), len(ids), ids[-1] != self.policy.turn_end.id)


# The rows.


def _prompt_dataset(rows: RowSource, count: int, open_rows: int) -> Any:
    data = datasets.Dataset.from_dict({"index": list(range(count))})
    return data.with_transform(_OpenPrompts(rows, open_rows))


class _OpenPrompts:
    """The columns that TRL needs, from row numbers. The last ``capacity`` rows stay open.

    TRL reads a row once per generation, and again for every forward pass of the step that it was generated for.
    """

    def __init__(self, rows: RowSource, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self._opened: OrderedDict[int, Row] = OrderedDict()

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        opened = {index: self._open(index) for index in dict.fromkeys(batch["index"])}
        return {
            "index": list(batch["index"]),
            "prompt": [opened[index].messages for index in batch["index"]],
            "images": [opened[index].images for index in batch["index"]],
        }

    def _open(self, index: int) -> Row:
        if index not in self._opened:
            self._opened[index] = self.rows(index)
            while len(self._opened) > self.capacity:
                self._opened.popitem(last=False)
        return self._opened[index]
