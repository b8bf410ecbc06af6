"""DPO: direct preference optimization on a chosen and a rejected answer to each question (arXiv 2305.18290).

This file reads from top to bottom: the stage, the settings of ``trl.DPOConfig`` with the loss, the trainer, the pairs.
The loop with OOM recovery and resume is in ``train``.

The loss of a pair is ``-log sigmoid(beta * (chosen - rejected))``. ``chosen`` and ``rejected`` are the log-probability
of the answer, summed over its tokens and the end of turn, minus that under the reference. The reference is the policy
that the stage starts from. TRL keeps it as a frozen copy of the adapter. Before the first step both agree, so the first
loss is ln 2.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, Final

import datasets
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer

from toolkit.distribution import pip_install
from toolkit.errors import TrainingError, warn
from toolkit.evaluation.stage_context import Context
from toolkit.models import Backend, choose_backend
from toolkit.models.backend import Policy, RowSource, TrainingJob
from toolkit.models.collate import IGNORED, collate
from toolkit.models.lengths import TokenLengths, check_lengths
from toolkit.models.oom import recipe_sizes
from toolkit.models.prompts import Prompts
from toolkit.models.vision_cache import VisionCache, cache_frozen_vision
from toolkit.training.distributed import per_process
from toolkit.training.image_processor_cache import CachedImageProcessor
from toolkit.training.preflight import check_rows, preflight_rows
from toolkit.training.results import DpoResult, PreferenceFigures
from toolkit.training.train import train, training_rows
from toolkit.training.trl_trainer import (
    build_trainer,
    common_settings,
    finish_trainer,
    local_optimizer,
    set_learning_rates,
)

STAGE: Final = "dpo"


def train_dpo(context: Context, *, preflight: bool | None = None) -> DpoResult:
    """Train on the pair of each training row and save the weights to the run folder. See ``evaluation.stage_context``.

    Args:
        context: The run.
        preflight: Whether to make a preflight step on the longest pairs first. It does not change the training.
            None: on a GPU.

    Raises:
        DataError: Rows are too long with one of their answers, or contain a special token of the model.
        TrainingError: The model ignores the images, or training cannot continue. See ``train.train``.
        Interrupted: A signal came. The state is saved.
    """
    recipe, samples = context.recipe, training_rows(context, STAGE)
    backend, prompts = choose_backend(recipe.model), Prompts.of(recipe, context.images)
    start = context.weights
    rejected_lengths: list[TokenLengths] = []

    def prepare(policy: Policy) -> tuple[TrainingJob, TokenLengths]:
        _warn_about_dropout(context)
        chosen = check_rows(context, backend, policy, prompts.of_pair("chosen"), samples)
        limit, check = recipe.model.max_tokens, context.check_stop_before_first_step
        rejected = check_lengths(policy.processor, prompts.of_pair("rejected"), samples, limit, on_row=check)
        rejected_lengths.append(rejected.tokens)
        by_length = sorted((chosen, rejected), key=lambda one: one.tokens.max, reverse=True)
        longest = _in_turns(*(one.longest for one in by_length))
        job = TrainingJob(
            recipe=recipe,
            rows=prompts.pairs(samples),
            count=len(samples),
            folder=context.run.stage_folder(STAGE),
            longest=preflight_rows(longest, preflight),
        )
        return job, chosen.tokens

    figures, lengths = train(context, STAGE, backend, prepare, build_dpo)
    first, last = _logged_figures(context)
    return DpoResult(
        training=figures,
        lengths=lengths,
        rejected_lengths=rejected_lengths[-1],
        backend=backend.name,
        optimizer=local_optimizer(recipe.dpo_settings),
        rows=len(samples),
        images=context.count_images(STAGE),
        reference="the base model" if start is None else context.run.relative(start),
        first=first,
        last=last,
    )


def _warn_about_dropout(context: Context) -> None:
    if context.recipe.lora.dropout > 0:
        warn(
            "training.dpo_without_dropout",
            "DPO trains without dropout, so that policy and reference differ by their parameters alone",
            place="[lora] dropout",
            value=context.recipe.lora.dropout,
        )


def _in_turns(*numbers: Sequence[int]) -> tuple[int, ...]:
    """Return the first of each sequence, then the second of each, and so on, each number once."""
    return tuple(dict.fromkeys(one for turn in zip_longest(*numbers) for one in turn if one is not None))


def _logged_figures(context: Context) -> tuple[PreferenceFigures | None, PreferenceFigures | None]:
    """Return the figures of the first and the last logged optimizer step. None: no step was logged."""
    steps = (line for line in context.run.metrics() if line["stage"] == STAGE)
    lines = [line for line in steps if {"loss", "rewards/margins"} <= line.keys()]
    found = [
        PreferenceFigures(line["step"], line["loss"], line["rewards/accuracies"], line["rewards/margins"])
        for line in lines[:1] + lines[-1:]
    ]
    return (found[0], found[-1]) if found else (None, None)


# The settings of trl.DPOConfig, with the loss.


def dpo_settings(job: TrainingJob) -> dict[str, object]:
    """Return the keyword arguments of ``trl.DPOConfig``."""
    dpo, sizes = job.recipe.dpo_settings, job.sizes or recipe_sizes(job.recipe, STAGE)
    return {
        **common_settings(job, dpo, dpo.epochs),
        "learning_rate": dpo.learning_rate,
        "per_device_train_batch_size": sizes.micro_batch,
        "gradient_accumulation_steps": per_process(sizes.accumulation, "[dpo] accumulation"),
        "max_grad_norm": dpo.max_grad_norm,
        "beta": dpo.beta,
        # Rows that are too long are reported before training. Truncating one would cut through its answer.
        "max_length": None,
        # TRL computes the log-probabilities of the reference beside those of the policy. It cannot compute them before
        # the first step for rows with images.
        "precompute_ref_log_probs": False,
        "disable_dropout": True,
        "remove_unused_columns": False,
    }


# The trainer.


def build_dpo(backend: Backend, policy: Policy, job: TrainingJob) -> Any:
    """Return TRL's DPOTrainer with the recipe's settings.

    The reference is a frozen copy of the policy's adapter. A policy that resumes has the parameters of its start here,
    because the trainer loads those of the checkpoint later.

    Raises:
        TrainingError: The library rewrote a setting, or the trainer has no reference.
        ModelError: The backend cannot train.
    """
    traits = backend.prepare_training(policy, job.recipe, STAGE)
    settings: dict[str, Any] = {**dpo_settings(job), **traits.changed_settings}
    # TRL tokenizes the rows itself, as text without images, unless the dataset has a column of images.
    rows = {"index": list(range(job.count)), "images": [None] * job.count}
    images = settings["per_device_train_batch_size"] * job.recipe.images.max_per_question
    trainer = build_trainer(
        DPOTrainer,
        DPOConfig(**settings),
        policy,
        job,
        train_dataset=datasets.Dataset.from_dict(rows),
        data_collator=PairCollator(policy, job.rows, images),
        processing_class=policy.processor,
    )
    _check_reference(policy)
    if (cache := cache_frozen_vision(policy.model)) is not None:
        trainer.add_callback(_ClearVisionCache(cache))
    set_learning_rates(trainer, job.recipe.dpo_settings)
    # The counter could not separate the pass of the policy from that of the reference, which has no backward pass.
    return finish_trainer(trainer, settings, policy, job, count_flops=False)


def _check_reference(policy: Policy) -> None:
    """Check that the model has TRL's frozen copy of the adapter. Without it, TRL's reference is the base model."""
    adapters = getattr(policy.model, "peft_config", {})
    trained = [name for name, one in policy.model.named_parameters() if ".ref." in name and one.requires_grad]
    if "ref" not in adapters or trained:
        raise TrainingError(
            "training.dpo_reference_missing",
            "TRL must keep a frozen copy of the adapter as the reference",
            place="dpo",
            value=sorted(adapters),
            remedy=f"Install the tested version: {pip_install('trl')}.",
        )


class _ClearVisionCache(TrainerCallback):
    """Frees the features of the images of an optimizer step.

    Policy and reference use the features of each image twice, for both answers.
    """

    def __init__(self, cache: VisionCache) -> None:
        self._cache = cache

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Clear the cache before a step, which has images of its own."""
        self._cache.clear()


# The pairs.


class PairCollator:
    """Collates row numbers into a batch of pairs, as TRL's DPOTrainer reads it.

    The first half of a batch has the chosen answers, the second half the rejected ones, in the same order. Prompts,
    images and answers are encoded as in SFT. Only the answer and its end of turn count, also in a conversation. An
    image is processed once for both answers.

    Args:
        policy: The model and its processor.
        rows: Returns the rows with both answers.
        images: The largest number of images in a batch.
    """

    def __init__(self, policy: Policy, rows: RowSource, images: int) -> None:
        processor = copy.copy(policy.processor)
        processor.image_processor = CachedImageProcessor(processor.image_processor, images)
        self.policy, self.rows = replace(policy, processor=processor), rows

    def __call__(self, examples: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Return input_ids, attention_mask and completion_mask of shape (2 x pairs, longest row), and the pixels."""
        rows = [self.rows(example["index"]) for example in examples]
        batch = collate(self.policy, [*rows, *(replace(row, answer=row.rejected) for row in rows)], earlier=False)
        batch["completion_mask"] = (batch.pop("labels") != IGNORED).long()
        return batch
