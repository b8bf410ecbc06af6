"""Scores of one image, metrics of the set (mAP), labels, and the baseline: the majority class at its mean box.

``toolkit.scoring.regions.detection`` says how mAP ranks boxes of a model that gives no confidences.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from toolkit.data.sample import Answer, Sample
from toolkit.data.task import SetMetrics
from toolkit.scoring.regions import Box, detection_metrics, match_image, write_boxes
from toolkit.tasks.detect import rewards
from toolkit.tasks.detect.parse import answers
from toolkit.tasks.detect.prompt import references

NO_FINDING = "no finding"
"""Label of an image without a box."""


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return f1, iou, count and format, and whether an answer has a box where the image has none, or the reverse.

    Scores:
        f1: reward ``f1``
        iou: reward ``iou``
        count: reward ``count``
        finding_found: 1 for a box in an image with findings
        no_finding_found: 1 for no box in an image without findings
        inside: fraction of the boxes inside the image
        format: reward ``format``
    """
    has_box = bool(references(sample))
    found = None if answer.problem else bool(answers(answer))
    return {
        "f1": rewards.f1(sample, answer),
        "iou": rewards.iou(sample, answer),
        "count": rewards.count(sample, answer),
        "finding_found": float(found is True) if has_box else None,
        "no_finding_found": None if has_box else float(found is False),
        "inside": _inside(sample, answer),
        "format": rewards.format(sample, answer),
    }


SET_METRICS = SetMetrics(
    part=lambda sample, answer: match_image(references(sample), answers(answer)), values=detection_metrics
)


def labels(sample: Sample, answer: Answer) -> tuple[str, str | None] | None:
    """Return the only class of the reference and of the answer. None if the reference has several classes."""
    true, named = ({label for label, _ in found} or {NO_FINDING} for found in (references(sample), answers(answer)))
    if len(true) > 1:
        return None
    return true.pop(), named.pop() if answer.problem is None and len(named) == 1 else None


def stratum(sample: Sample) -> str:
    """Return the classes of the image, in sorted order."""
    return ", ".join(sorted({label for label, _ in references(sample)})) or NO_FINDING


def baseline(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Return sample -> the most frequent class at its mean box, or no box if most images have none.

    Each edge is the mean over the boxes of the class in the training rows, as a fraction of the side.
    """
    found = [(label, _fractions(box, sample.fields["size"])) for sample in samples for label, box in references(sample)]
    empty = sum(not sample.reference["boxes"] for sample in samples)
    if not found or empty > len(samples) / 2:
        return lambda sample: write_boxes([], sample.fields["frame"], sample.fields["settings"].key)
    name = Counter(label for label, _ in found).most_common(1)[0][0]
    boxes = [box for label, box in found if label == name]
    x1, y1, x2, y2 = (sum(edges) / len(boxes) for edges in zip(*boxes, strict=True))

    def complete(sample: Sample) -> str:
        width, height = sample.fields["size"]
        box = (x1 * width, y1 * height, x2 * width, y2 * height)
        return write_boxes([(name, box)], sample.fields["frame"], sample.fields["settings"].key)

    return complete


def _fractions(box: Box, size: tuple[int, int]) -> Box:
    return box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1]


def _inside(sample: Sample, answer: Answer) -> float | None:
    """Return the fraction of answer boxes inside the image, up to one pixel. None without a box."""
    boxes = answers(answer)
    if not boxes:
        return None
    width, height = sample.fields["size"]
    good = [min(box) >= -1 and box[2] <= width + 1 and box[3] <= height + 1 for _, box in boxes].count(True)
    return good / len(boxes)
