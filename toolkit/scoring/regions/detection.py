"""Average precision of detected boxes, as COCO defines it (Lin et al. 2014, arXiv 1405.0312), and matches of one image.

AP ranks all boxes of a class, but a generative model gives no confidence. Here a box is ranked by its place
among the boxes of its class in its answer: the first box of every answer comes before all second boxes. Boxes of equal
rank are in the order of the images. pycocotools gives the same value for the scores 1, 1/2, 1/3, … of the boxes of a
class in an answer, which a test verifies. The value is therefore comparable between models that write boxes, but lower
than that of a detector with good confidences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.scoring.regions.boxes import Box, box_iou, match

Labelled = tuple[str, Box]
"""Class and box."""

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""0.5, 0.55, … 0.95."""

MAX_BOXES = 100
"""Most boxes of one image and class that count, as in COCO."""

_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True)
class ClassMatches:
    """One class in one image: the number of reference boxes, and the correct boxes of the answer in their order.

    ``correct`` has shape (thresholds, answer boxes).
    """

    references: int
    correct: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ImageMatches:
    """All classes of one image, and the counts of its optimal assignment at an IoU of 0.5."""

    classes: Mapping[str, ClassMatches]
    matched: int
    references: int
    answers: int


def match_image(references: Sequence[Labelled], answers: Sequence[Labelled]) -> ImageMatches:
    """Return what the metrics of a set need of one image."""
    names = dict.fromkeys(name for name, _ in (*references, *answers))
    classes = {name: _match_class(_of(references, name), _of(answers, name)[:MAX_BOXES]) for name in names}
    matched = sum(overlap >= 0.5 for overlap in matched_overlaps(references, answers))
    return ImageMatches(classes, matched, len(references), len(answers))


def matched_overlaps(references: Sequence[Labelled], answers: Sequence[Labelled]) -> list[float]:
    """Return the IoU of each matched pair of the same class, by the assignment with the largest sum (Kuhn 1955)."""
    found = []
    for name in dict.fromkeys(name for name, _ in references):
        ours, others = _of(references, name), _of(answers, name)
        pairs, _ = match(ours, others, box_iou)
        found += [box_iou(ours[i], others[j]) for i, j in pairs]
    return found


def mean_overlap(references: Sequence[Labelled], answers: Sequence[Labelled]) -> float:
    """Return the mean IoU of an image. A missing, an extra and a wrongly labelled box count 0. 1 if both are empty.

    >>> mean_overlap([("a", (0, 0, 10, 10))], [("a", (0, 0, 10, 5)), ("b", (0, 0, 10, 10))])
    0.25
    """
    if not references and not answers:
        return 1.0
    unmatched = len(references) + len(answers) - 2 * len(overlaps := matched_overlaps(references, answers))
    return sum(overlaps) / (len(overlaps) + unmatched) if overlaps else 0.0


def f1_at(references: Sequence[Labelled], answers: Sequence[Labelled], threshold: float = 0.5) -> float:
    """Return F1 of the boxes of an image, with pairs of one class from this IoU on as correct. 1 if both are empty.

    >>> f1_at([("a", (0, 0, 10, 10))], [("a", (0, 0, 10, 5)), ("a", (0, 0, 10, 2))])
    0.6666666666666666
    """
    if not references and not answers:
        return 1.0
    correct = sum(overlap >= threshold for overlap in matched_overlaps(references, answers))
    return 2 * correct / (len(references) + len(answers))


def average_precisions(images: Sequence[ImageMatches]) -> dict[str, NDArray[np.float64]]:
    """Return class -> AP at each of ``IOU_THRESHOLDS``, for the classes that have a reference box."""
    parts: dict[str, list[ClassMatches]] = {}
    for image in images:
        for name, matches in image.classes.items():
            parts.setdefault(name, []).append(matches)
    return {
        name: _average_precision(matches)
        for name, matches in sorted(parts.items())
        if any(one.references for one in matches)
    }


def detection_metrics(images: Sequence[ImageMatches]) -> dict[str, float | None]:
    """Return the metrics of a set: mAP at 0.5 and from 0.5 to 0.95, F1, precision and recall at 0.5, and AP by class.

    A metric is None if it is not defined: AP without a reference box, precision without an answer box.
    """
    by_class = average_precisions(images)
    matched, references, answers = (
        sum(getattr(image, name) for image in images) for name in ("matched", "references", "answers")
    )
    found: dict[str, float | None] = {
        "mAP": float(np.mean([values.mean() for values in by_class.values()])) if by_class else None,
        "mAP_50": float(np.mean([values[0] for values in by_class.values()])) if by_class else None,
        "f1_50": 2 * matched / (references + answers) if references + answers else None,
        "precision_50": matched / answers if answers else None,
        "recall_50": matched / references if references else None,
    }
    return found | {f"AP_50 {name}": float(values[0]) for name, values in by_class.items()}


def _of(boxes: Sequence[Labelled], name: str) -> list[Box]:
    return [box for label, box in boxes if label == name]


def _match_class(references: Sequence[Box], answers: Sequence[Box]) -> ClassMatches:
    """Match greedily in the order of the answers, for each threshold, with the best free reference."""
    correct = np.zeros((len(IOU_THRESHOLDS), len(answers)), dtype=bool)
    overlaps = [[box_iou(answer, one) for one in references] for answer in answers]
    for row, threshold in enumerate(IOU_THRESHOLDS):
        free = set(range(len(references)))
        for column, values in enumerate(overlaps):
            best = max(free, key=lambda number: (values[number], number), default=None)
            if best is not None and values[best] >= threshold:
                correct[row, column] = True
                free.remove(best)
    return ClassMatches(len(references), correct)


def _average_precision(matches: Sequence[ClassMatches]) -> NDArray[np.float64]:
    """Return AP at each threshold: the mean of the interpolated precision at 101 recalls."""
    ranks = np.concatenate([np.arange(one.correct.shape[1]) for one in matches])
    correct = np.concatenate([one.correct for one in matches], axis=1)[:, np.argsort(ranks, kind="stable")]
    references = sum(one.references for one in matches)
    found = np.cumsum(correct, axis=1)
    recall, precision = found / references, found / np.arange(1, correct.shape[1] + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    values = np.zeros(len(correct))
    for row in range(len(correct)):
        # pycocotools compares in the same way: the first place whose recall is at least the wanted one.
        places = np.searchsorted(recall[row], _RECALLS, side="left")
        inside = places < correct.shape[1]
        values[row] = envelope[row, places[inside]].sum() / len(_RECALLS)
    return values
