"""Before the first step: do the pictures of the training rows count?"""

import logging
from collections.abc import Sequence

from toolkit.data.sample import Sample
from toolkit.errors import warn
from toolkit.models import Backend
from toolkit.models.backend import Policy
from toolkit.models.image_ablation import check_images_change_loss
from toolkit.models.oom import attempt
from toolkit.models.prompts import Prompts

log = logging.getLogger(__name__)
SEARCHED = 200
"""Rows that are looked at for two whose pictures differ."""


def check_images_used(backend: Backend, policy: Policy, prompts: Prompts, samples: Sequence[Sample]) -> bool:
    """Exchange the pictures of two rows and see that their answers become more or less likely.

    Without two rows that have as many pictures, and not the same ones, there is nothing to exchange; then, and where
    memory is too small to look, that is told and it is False.

    Raises:
        TrainingError: nothing changed; see ``check_images_change_loss``.
    """
    pair = _differing(samples)
    if pair is None:
        log.info("no two rows whose pictures can be exchanged: whether they count is not known")
        return False
    rows = [prompts.row(sample, answer=True) for sample in pair]
    looked = attempt(lambda: check_images_change_loss(lambda row: backend.answer_loss(policy, row), rows))
    if not looked:
        warn(
            "training.images_not_checked",
            "out of memory while checking that answers depend on the images. The check is skipped",
            place="training",
        )
    return bool(looked)


def _differing(samples: Sequence[Sample]) -> tuple[Sample, Sample] | None:
    first = None
    for number in range(min(len(samples), SEARCHED)):
        sample = samples[number]
        if not sample.images:
            continue
        if first is None:
            first = sample
        elif len(sample.images) == len(first.images) and sample.images != first.images:
            return first, sample
    return None
