"""Sample and Answer: a question with its images and reference, and what was read out of a completion."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.images.ref import ImageRef


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about zero or more images.

    ``group`` is the patient, lesion or radiograph: no group is in two splits. ``fields`` is what a prompt may be made
    of; ``reference`` is what answers are judged against and never enters a prompt.
    """

    id: str
    task: str
    group: str
    images: tuple[ImageRef, ...]
    fields: Mapping[str, Any]
    reference: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What was read out of one completion.

    ``text`` is the completion without its turn end; ``values`` the parts that the task's parser found; ``problem`` says
    why it could not be read (None: it could); ``truncated`` that it ran into the token limit.
    """

    text: str
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    truncated: bool = False


Reward = Callable[[Sample, Answer], float | None]
"""A pure score in [0, 1]; None if it does not apply to this sample."""
