"""SFT: supervised fine-tuning on the reference answers."""

import logging

from toolkit.backends import choose_backend
from toolkit.backends.base import TrainingJob
from toolkit.backends.settings import optimizer_here
from toolkit.recipe import Sft
from toolkit.run import Record
from toolkit.stages.context import Context
from toolkit.stages.lengths import check_lengths
from toolkit.stages.prompts import Prompts
from toolkit.stages.sight import look_first
from toolkit.stages.training import (
    rows_to_probe,
    save_weights,
    tracked,
    train,
    training_callbacks,
    training_rows,
)

log = logging.getLogger(__name__)
STAGE = "sft"


def train_sft(context: Context, *, probe_step: bool | None = None) -> Record:
    """Train on every training row and leave the weights in the run folder; see ``context.TrainStage``.

    ``probe_step``: whether a step on the longest rows comes first, which changes nothing; default: on a GPU.
    """
    recipe, samples = context.recipe, training_rows(context, STAGE)
    backend = choose_backend(recipe.model)
    prompts = Prompts.of(recipe, context.images)
    policy = backend.load(recipe, context.weights, trainable=True)
    lengths = check_lengths(policy.processor, prompts, samples, recipe.model.max_tokens, tell=context.no_step_yet)
    log.info("sft: %d rows, median %d and at most %d tokens", lengths.rows, lengths.median, lengths.max)
    look_first(backend, policy, prompts, samples)
    job = TrainingJob(
        recipe=recipe,
        rows=prompts.rows(samples, answer=True),
        count=len(samples),
        folder=context.run.stage_folder(STAGE),
        callbacks=training_callbacks(context, STAGE),
        longest=rows_to_probe(lengths, probe_step),
    )
    with tracked(context, STAGE):
        record = train(backend, policy, backend.sft_trainer(policy, job), context, STAGE)
    save_weights(backend, policy, context.run.weights_folder(STAGE))
    return {
        **record,
        "backend": backend.name,
        "optimizer": optimizer_here(recipe.sft or Sft()),
        "rows": len(samples),
        "lengths": lengths.to_dict(),
        "pictures": context.count_pictures(STAGE),
    }
