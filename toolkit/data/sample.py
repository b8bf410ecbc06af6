"""Sample, ImageRef and Answer: the only data units that cross rooms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One picture on disk, not yet opened.

    ``path`` is absolute and inside the data root; ``frame`` counts from 0 (multi-frame DICOM and multi-page TIFF).
    ``crop`` is the part that is shown: x1, y1, x2, y2 in pixels of the upright picture, x2 and y2 exclusive; None: all.
    """

    path: Path
    frame: int = 0
    crop: tuple[int, int, int, int] | None = None

    @property
    def part(self) -> str:
        """Frame and crop as one word: with the path or the content it names what is shown."""
        return "_".join(map(str, (self.frame, *(self.crop or ()))))


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about zero or more images.

    ``group`` is the patient, lesion or film: no group stands in two splits. ``fields`` is what a prompt may be made
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
"""A pure score in [0, 1]; None where it does not apply to this sample."""
