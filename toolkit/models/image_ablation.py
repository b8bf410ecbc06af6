"""Whether a model's answers depend on the pictures at all: pixels that are lost on the way leave no other trace."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from toolkit.errors import TrainingError
from toolkit.models.backend import Policy, Row
from toolkit.models.collate import collate


def answer_loss(policy: Policy, row: Row) -> float:
    """Minus the mean log-probability of the answer's tokens; the model's mode and gradients stay as they are."""
    batch = {name: value.to(policy.model.device) for name, value in collate(policy, [row]).items()}
    with torch.no_grad():
        return float(policy.model(**batch).loss)


def check_images_change_loss(loss: Callable[[Row], float], rows: Sequence[Row]) -> bool:
    """Exchange the pictures of two rows: the log-probabilities of their answers must change. Then it is True.

    Args:
        loss: a row's ``answer_loss``. It is asked twice for the same row, since a GPU's sums may differ in their last
            bits; a change counts only beyond that.
        rows: two rows with answers and as many pictures, which differ.

    Raises:
        TrainingError: neither changed. unsloth#11031 is a case: GRPO's log-probabilities without any pixels.
    """
    for row, other in (rows, rows[::-1]):
        seen, again = loss(row), loss(row)
        if abs(loss(replace(row, images=other.images)) - seen) > abs(again - seen):
            return True
    raise images_ignored_error("two rows with swapped images")


def images_ignored_error(place: str) -> TrainingError:
    """The error that training would go on without looking at pictures."""
    return TrainingError(
        "training.images_ignored",
        "log-probabilities of answers must depend on the images, but no pixels reach the model (see unsloth#11031)",
        place=place,
        remedy='Install the versions of unsloth, trl and transformers in constraints.txt, or set backend = "hf".',
    )
