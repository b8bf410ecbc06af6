"""SFT: supervised fine-tuning on the reference answers: the stage, the loss settings, the trainer.

The loss itself is in ``sft_loss``, the labels are in ``models.collate``.
"""

from typing import Any

import datasets
from trl import SFTConfig, SFTTrainer

from toolkit.errors import warn
from toolkit.evaluation.stage_context import Context
from toolkit.models import Backend, choose_backend
from toolkit.models.backend import Policy, TrainingJob
from toolkit.models.collate import SftCollator
from toolkit.models.earlier_turns import turn_headers
from toolkit.models.lengths import TokenLengths
from toolkit.models.oom import recipe_sizes
from toolkit.models.prompts import Prompts
from toolkit.training import sft_loss
from toolkit.training.distributed import per_process
from toolkit.training.preflight import check_rows, preflight_rows
from toolkit.training.results import SftResult
from toolkit.training.train import train, training_rows
from toolkit.training.trl_trainer import (
    build_trainer,
    common_settings,
    finish_trainer,
    local_optimizer,
    set_learning_rates,
)
from toolkit.training.validation import Validator

STAGE = "sft"


def train_sft(context: Context, *, preflight: bool | None = None) -> SftResult:
    """Train on every training row and save the weights to the run folder. See ``evaluation.stage_context``.

    Args:
        context: The run.
        preflight: Whether to make a preflight step on the longest rows first. It does not change the training.
            None: on a GPU.

    Raises:
        DataError: Rows are too long, or contain a special token of the model.
        TrainingError: The model ignores the images, or training cannot continue. See ``train.train``.
        Interrupted: A signal came. The state is saved.
    """
    recipe, samples = context.recipe, training_rows(context, STAGE)
    backend, prompts = choose_backend(recipe.model), Prompts.of(recipe, context.images)
    validator = Validator.of(context, STAGE, prompts)

    def prepare(policy: Policy) -> tuple[TrainingJob, TokenLengths]:
        lengths = check_rows(context, backend, policy, prompts, samples)
        if prompts.task.turns:
            _warn_about_template(policy)
        job = TrainingJob(
            recipe=recipe,
            rows=prompts.rows(samples, answer=True),
            count=len(samples),
            folder=context.run.stage_folder(STAGE),
            longest=preflight_rows(lengths.longest, preflight),
        )
        return job, lengths.tokens

    figures, lengths = train(context, STAGE, backend, prepare, build_sft, validator)
    return SftResult(
        training=figures,
        lengths=lengths,
        backend=backend.name,
        optimizer=local_optimizer(recipe.sft_settings),
        rows=len(samples),
        images=context.count_images(STAGE),
    )


def _warn_about_template(policy: Policy) -> None:
    """Warn if the chat template begins an earlier assistant turn differently from an answer."""
    shown, header = turn_headers(policy.processor, policy.turn_end)
    if shown != header:
        warn(
            "training.template_differs_between_turns",
            "the chat template should begin earlier assistant turns like answers. SFT learns all turns as answers",
            place="chat template",
            value=f"{shown!r} before earlier turns, {header!r} before an answer",
        )


def sft_settings(job: TrainingJob) -> dict[str, object]:
    """Return the keyword arguments of ``trl.SFTConfig``."""
    sft, sizes = job.recipe.sft_settings, job.sizes or recipe_sizes(job.recipe, "sft")
    return {
        **common_settings(job, sft, sft.epochs),
        "learning_rate": sft.learning_rate,
        "per_device_train_batch_size": sizes.micro_batch,
        "gradient_accumulation_steps": per_process(sizes.accumulation, "[sft] accumulation"),
        "max_grad_norm": sft.max_grad_norm,
        # Rows that are too long are reported before training. Truncating one would cut through its image tokens.
        "max_length": None,
        "loss_type": "chunked_nll",  # computes logits for answer tokens only
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
    }


def build_sft(backend: Backend, policy: Policy, job: TrainingJob) -> Any:
    """Return TRL's SFTTrainer with the recipe's settings.

    Raises:
        TrainingError: The library rewrote a setting.
        ModelError: The backend cannot train.
    """
    traits = backend.prepare_training(policy, job.recipe, "sft")
    settings = {**sft_settings(job), **traits.changed_settings}
    trainer = build_trainer(
        SFTTrainer,
        SFTConfig(**settings),
        policy,
        job,
        train_dataset=datasets.Dataset.from_dict({"index": list(range(job.count))}),
        data_collator=SftCollator(policy, job.rows),
        processing_class=policy.processor,
    )
    # TRL's loss divides by the answer tokens of the whole optimizer step if the trainer passes their number. The
    # trainer does so only for models that accept loss arguments. Gemma 3 reports that it does not, so each pass would
    # have equal weight, whatever its number of answer tokens.
    if traits.loss_by_tokens is not None:
        trainer.model_accepts_loss_kwargs = traits.loss_by_tokens
    elif not trainer.model_accepts_loss_kwargs and trainer.args.gradient_accumulation_steps > 1:
        warn(
            "training.loss_by_forward_pass",
            "each forward pass of an optimizer step has equal weight, regardless of its number of answer tokens",
            place="sft",
        )
    if trainer.args.loss_type == "chunked_nll":
        sft_loss.install(trainer)
    set_learning_rates(trainer, job.recipe.sft_settings)
    return finish_trainer(trainer, settings, policy, job, count_flops=traits.count_flops)
