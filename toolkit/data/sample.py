"""Sample, Answer and Turn: a question with its images and reference, the parsed completion, and a conversation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from toolkit.images.ref import ImageRef

OTHER_FILES = "other_files"
"""Field with files of the reference, such as a mask. The scan counts how their names were found, as for images."""


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
