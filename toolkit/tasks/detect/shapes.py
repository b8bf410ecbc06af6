"""What a report draws over an image: the boxes of the reference and of an answer, with their classes."""

from toolkit.data.sample import Answer, Sample
from toolkit.data.shapes import Shape, box_shape
from toolkit.tasks.detect.parse import answers
from toolkit.tasks.detect.prompt import references


def shapes(sample: Sample, answer: Answer | None) -> tuple[Shape, ...]:
    """Return the boxes. ``answer`` is None for the reference."""
    found = references(sample) if answer is None else answers(answer)
    return tuple(box_shape(box, label) for label, box in found)
