"""The check before the first step that the model uses the images of the training rows."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from toolkit.data.sample import Sample
from toolkit.errors import TrainingError, warn
from toolkit.models import Backend
from toolkit.models.backend import Policy, Row
from toolkit.models.oom import attempt
from toolkit.models.prompts import Prompts

log = logging.getLogger(__name__)
MAX_ROWS_SEARCHED = 200
"""Rows in which two with different images are searched for."""


def check_images_used(backend: Backend, policy: Policy, prompts: Prompts, samples: Sequence[Sample]) -> bool:
    """Swap the images of two rows and check that the loss of their answers changes.

    Returns:
        Whether the check was made. It needs two rows with the same number of images, which differ, and enough GPU
        memory. Otherwise the log says why it was skipped.

    Raises:
        TrainingError: The loss did not change. See ``check_images_change_loss``.
    """
    pair = _different_images(samples)
    if pair is None:
        log.info("image check skipped: no two rows have the same number of images with different content")
        return False
    rows = [prompts.row(sample, answer=True) for sample in pair]
    checked = attempt(lambda: check_images_change_loss(lambda row: backend.answer_loss(policy, row), rows))
    if not checked:
        warn(
            "training.images_not_checked",
            "out of memory while checking that answers depend on the images. The check is skipped",
            place="training",
        )
    return bool(checked)


def check_images_change_loss(loss: Callable[[Row], float], rows: Sequence[Row]) -> bool:
    """Swap the images of two rows. Return True if the loss of an answer changes.

    Args:
        loss: ``answer_loss`` of a row. It is computed twice for the same row, because sums on a GPU may differ in their
            last bits. Only a larger change counts.
        rows: Two rows with answers and the same number of images, which differ.

    Raises:
        TrainingError: Neither loss changed. An example is unsloth#11031: GRPO's log-probabilities without any pixels.
    """
    for row, other in (rows, rows[::-1]):
        first, repeated = loss(row), loss(row)
        if abs(loss(replace(row, images=other.images)) - first) > abs(repeated - first):
            return True
    raise images_ignored_error("two rows with swapped images")


def images_ignored_error(place: str) -> TrainingError:
    """Return the error for a model whose log-probabilities do not depend on its images."""
    return TrainingError(
        "training.images_ignored",
        "log-probabilities of answers must depend on the images, but no pixels reach the model (see unsloth#11031)",
        place=place,
        remedy='Install the versions of unsloth, trl and transformers in constraints.txt, or set backend = "hf".',
    )


def _different_images(samples: Sequence[Sample]) -> tuple[Sample, Sample] | None:
    first = None
    for number in range(min(len(samples), MAX_ROWS_SEARCHED)):
        sample = samples[number]
        if not sample.images:
            continue
        if first is None:
            first = sample
        elif len(sample.images) == len(first.images) and sample.images != first.images:
            return first, sample
    return None
