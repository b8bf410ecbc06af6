"""Rewards for detected boxes: f1, iou, count, format.

``sample.reference`` and ``answer.values`` are those of the task ``detect``, in pixels of the image. If an image has no
findings, an answer without boxes has every reward. An answer that cannot be parsed has none.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from toolkit.data.sample import Answer, Reward, Sample
from toolkit.scoring.regions import f1_at, mean_overlap
from toolkit.tasks.detect.parse import answers
from toolkit.tasks.detect.prompt import references

EXAMPLE = Sample(
    id="example",
    task="detect",
    group="image-1",
    images=(),
    fields={"classes": ("effusion", "nodule"), "size": (100, 100)},
    reference={"labels": ["nodule", "effusion"], "boxes": [[10, 10, 40, 40], [50, 50, 90, 90]]},
)
"""The sample of the worked examples in this file."""


def _answer(*found: tuple[str, list[float]]) -> Answer:
    """Return a parsed answer with these labels and boxes, for the examples."""
    values: dict[str, Any] = {"labels": [label for label, _ in found], "boxes": [box for _, box in found], "unread": []}
    return Answer("…", values)


def f1(sample: Sample, answer: Answer) -> float:
    """Return F1 of the boxes. A box is correct if its class is right and its IoU is at least 0.5, one for one.

    >>> f1(EXAMPLE, _answer(("nodule", [10, 10, 40, 25]), ("effusion", [0, 0, 9, 9])))
    0.5
    """
    return 0.0 if answer.problem else f1_at(references(sample), answers(answer))


def iou(sample: Sample, answer: Answer) -> float:
    """Return the mean IoU of matched boxes of the same class. A missing and an extra box count 0.

    >>> iou(EXAMPLE, _answer(("nodule", [10, 10, 40, 25]), ("effusion", [50, 50, 90, 90])))
    0.75
    """
    return 0.0 if answer.problem else mean_overlap(references(sample), answers(answer))


def count(sample: Sample, answer: Answer) -> float:
    """Return the fraction of boxes whose number is right, by class: common boxes over the larger number of each class.

    >>> count(EXAMPLE, _answer(("nodule", [0, 0, 1, 1]))), count(EXAMPLE, _answer())
    (0.5, 0.0)
    """
    if answer.problem:
        return 0.0
    expected, named = (Counter(label for label, _ in found) for found in (references(sample), answers(answer)))
    larger = (expected | named).total()
    return (expected & named).total() / larger if larger else 1.0


def format(sample: Sample, answer: Answer) -> float:
    """Return 1 if the whole answer was parsed, and every label is a class.

    >>> format(EXAMPLE, _answer()), format(EXAMPLE, Answer("?", {}, "no list"))
    (1.0, 0.0)
    """
    return float(answer.problem is None and not answer.values.get("unread"))


REWARDS: Mapping[str, Reward] = {"f1": f1, "iou": iou, "count": count, "format": format}

REWARD_WEIGHTS: Mapping[str, float] = {"f1": 0.4, "iou": 0.4, "count": 0.1, "format": 0.1}
"""Maps rewards to default weights. ``iou`` rises before a box reaches the IoU of 0.5 that ``f1`` needs."""

ALL_OR_NOTHING = frozenset({"format"})
"""Rewards that are 0 or 1 for nearly every answer."""


def why_boxes(sample: Sample, answer: Answer) -> str:
    """Return the boxes of both in pixels."""
    return f"read {_shown(answers(answer)) or _unread(answer)}, reference {_shown(references(sample)) or 'none'}"


def why_count(sample: Sample, answer: Answer) -> str:
    """Return the numbers of boxes."""
    return f"read {len(answers(answer))} boxes, reference {len(references(sample))}"


def why_format(sample: Sample, answer: Answer) -> str:
    """Return the unparsed parts."""
    return f"{len(answers(answer))} boxes. Unparsed: {_unread(answer)}"


WHY = {"f1": why_boxes, "iou": why_boxes, "count": why_count, "format": why_format}
"""Reward -> explanation of its value."""


def _shown(boxes: Any) -> str:
    return ", ".join(f"{label} {[round(edge, 1) for edge in box]}" for label, box in boxes)


def _unread(answer: Answer) -> str:
    return answer.problem or "; ".join(answer.values.get("unread", ())) or "nothing"
