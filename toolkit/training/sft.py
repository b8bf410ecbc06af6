"""SFT: supervised fine-tuning on the reference answers: the stage, the loss settings, the trainer.

The loss itself is in ``sft_loss``, the labels are in ``models.collate``.
"""

import logging
from typing import Any

import datasets
from trl import SFTConfig, SFTTrainer

from toolkit.errors import warn
from toolkit.evaluation.context import Context
from toolkit.models import Backend, choose_backend
from toolkit.models.backend import Policy, TrainingJob
from toolkit.models.batch_sizes import recipe_sizes
from toolkit.models.collate import SftCollator
from toolkit.models.lengths import Lengths, check_lengths
from toolkit.models.prompts import Prompts
from toolkit.recipe import Sft
from toolkit.training import sft_loss
from toolkit.training.image_check import check_images_used
from toolkit.training.measured_flops import count_one_pass
from toolkit.training.results import SftResult
from toolkit.training.train import preflight_rows, train, training_rows
from toolkit.training.trl_settings import (
    common_settings,
    finish_trainer,
    keep_precision,
    local_optimizer,
    per_process,
    use_one_gpu,
)

log = logging.getLogger(__name__)
STAGE = "sft"


def train_sft(context: Context, *, preflight: bool | None = None) -> SftResult:
    """Train on every training row and save the weights to the run folder. See ``evaluation.context``.

    Args:
        context: The run.
        preflight: Whether to make a preflight step on the longest rows first. It does not change the training.
            None: on a GPU.
    """
    recipe, samples = context.recipe, training_rows(context, STAGE)
    backend, prompts = choose_backend(recipe.model), Prompts.of(recipe, context.images)

    def prepare(policy: Policy) -> tuple[TrainingJob, Lengths]:
        lengths = check_lengths(policy.processor, prompts, samples, recipe.model.max_tokens, on_row=context.no_step_yet)
        log.info("sft: %d rows, median %d and at most %d tokens", lengths.rows, lengths.median, lengths.max)
        check_images_used(backend, policy, prompts, samples)
        job = TrainingJob(
            recipe=recipe,
            rows=prompts.rows(samples, answer=True),
            count=len(samples),
            folder=context.run.stage_folder(STAGE),
            longest=preflight_rows(lengths, preflight),
        )
        return job, lengths

    figures, lengths = train(context, STAGE, backend, prepare, build_sft)
    return SftResult(
        training=figures,
        lengths=lengths,
        backend=backend.name,
        optimizer=local_optimizer(recipe.sft or Sft()),
        rows=len(samples),
        images=context.count_images(STAGE),
    )


def sft_settings(job: TrainingJob) -> dict[str, Any]:
    """Return the keyword arguments of ``trl.SFTConfig``."""
    sft, sizes = job.recipe.sft or Sft(), job.sizes or recipe_sizes(job.recipe, "sft")
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
    with keep_precision(policy.model):
        trainer = SFTTrainer(
            model=policy.model,
            args=use_one_gpu(SFTConfig(**settings)),
            train_dataset=datasets.Dataset.from_dict({"index": list(range(job.count))}),
            data_collator=SftCollator(policy, job.rows),
            processing_class=policy.processor,
            callbacks=list(job.callbacks),
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
    if traits.count_flops and not job.preflight:
        count_one_pass(trainer, policy)
    return finish_trainer(trainer, settings, policy)
