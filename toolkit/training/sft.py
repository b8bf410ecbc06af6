"""SFT: supervised fine-tuning on the reference answers."""

import logging

from toolkit.evaluation.context import Context
from toolkit.models import choose_backend
from toolkit.models.backend import Policy, TrainingJob
from toolkit.models.lengths import check_lengths
from toolkit.models.prompts import Prompts
from toolkit.recipe import Sft
from toolkit.runfolder import Record
from toolkit.training.image_check import look_first
from toolkit.training.train import rows_for_preflight, train, training_rows
from toolkit.training.trl_settings import optimizer_here

log = logging.getLogger(__name__)
STAGE = "sft"


def train_sft(context: Context, *, preflight: bool | None = None) -> Record:
    """Train on every training row and leave the weights in the run folder; see ``context.TrainStage``.

    ``preflight``: whether a preflight step on the longest rows comes first, which changes nothing; default: on a GPU.
    """
    recipe, samples = context.recipe, training_rows(context, STAGE)
    backend, prompts = choose_backend(recipe.model), Prompts.of(recipe, context.images)

    def prepare(policy: Policy) -> tuple[TrainingJob, Record]:
        lengths = check_lengths(policy.processor, prompts, samples, recipe.model.max_tokens, tell=context.no_step_yet)
        log.info("sft: %d rows, median %d and at most %d tokens", lengths.rows, lengths.median, lengths.max)
        look_first(backend, policy, prompts, samples)
        job = TrainingJob(
            recipe=recipe,
            rows=prompts.rows(samples, answer=True),
            count=len(samples),
            folder=context.run.stage_folder(STAGE),
            longest=rows_for_preflight(lengths, preflight),
        )
        return job, {"lengths": lengths.to_dict()}

    record = train(context, STAGE, backend, prepare)
    return {
        **record,
        "backend": backend.name,
        "optimizer": optimizer_here(recipe.sft or Sft()),
        "rows": len(samples),
        "pictures": context.count_images(STAGE),
    }
