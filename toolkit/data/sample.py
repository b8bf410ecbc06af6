"""Sample, Answer and Turn: a question with its images and reference, the parsed completion, and a conversation.

A Preference has two answers to the question, for DPO.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from toolkit.errors import ImageError
from toolkit.identifiers import hidden_id
from toolkit.images.ref import ImageRef

OTHER_FILES = "other_files"
"""Field with files of the reference, such as a mask. The scan counts how their names were found, as for images."""


class Preference(NamedTuple):
    """Two different answers to one question. They never enter a prompt."""

    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about zero or more images.

    ``group`` is the patient, lesion or image. No group is in two splits. ``fields`` has everything that a prompt can
    use. ``reference`` has the ground truth and never enters a prompt.
    """

    id: str
    task: str
    group: str
    images: tuple[ImageRef, ...]
    fields: Mapping[str, Any]
    reference: Mapping[str, Any]
    place: str = field(default="", compare=False)
    """File and row number, such as ``data/train.json, row 12``. Empty if the sample is not from a file."""
    preference: Preference | None = None
    """The two answers of a training row for DPO. None: the recipe has no DPO."""

    @property
    def shown(self) -> str:
        """Return what messages name the sample by: its place, otherwise a hash of its id, which can name a patient."""
        return self.place or hidden_id(self.id)


def rows_of_images(samples: Iterable[Sample], wanted: Collection[ImageRef]) -> dict[ImageRef, str]:
    """Return the first row of each of these images, such as ``data/train.json, row 12, image 1``."""
    found: dict[ImageRef, str] = {}
    for sample in samples if wanted else ():
        for number, ref in enumerate(sample.images, 1):
            if ref in wanted and ref not in found:
                found[ref] = f"{sample.shown}, image {number}"
        if len(found) == len(wanted):
            break
    return found


def with_row(error: ImageError, samples: Sequence[Sample]) -> ImageError:
    """Return the error of an image with the first of these rows that has it as its place."""
    refs = (ref for sample in samples for ref in sample.images if ref.path == error.path)
    ref = next(refs, None)
    return error if ref is None else error.at(rows_of_images(samples, {ref})[ref])


@dataclass(frozen=True, slots=True)
class Answer:
    """One parsed completion.

    ``text`` is the completion without its end-of-turn token. ``values`` has the parsed parts. ``problem`` says why
    parsing failed, or is None. ``truncated`` says whether generation stopped at the token limit. ``probabilities`` has
    class -> probability if they were computed.
    """

    text: str
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    truncated: bool = False
    probabilities: Mapping[str, float] | None = None


class Turn(NamedTuple):
    """One turn of a conversation. ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    text: str


Reward = Callable[[Sample, Answer], float | None]
"""A pure score in [0, 1], or None if it does not apply to the sample."""
