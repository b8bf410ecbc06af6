"""Answers without a look: the most frequent step of the training rows, and the last step again."""

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from toolkit.sample import Sample
from toolkit.tasks.steps.form import PARTS
from toolkit.tasks.steps.memory import compact

Pair = tuple[str, str | None]
"""Action and target."""


def baseline(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Sample -> the most frequent pair of action and target, at the median place of its training rows.

    The place is a point, each coordinate the median in shares of the sides.
    """
    pairs: Counter[Pair] = Counter()
    points: dict[Pair, list[tuple[float, float]]] = {}
    for sample in samples:
        pair = (sample.reference["action"], sample.reference["target"])
        pairs[pair] += 1
        if (place := sample.reference["place"]) is not None:
            width, height = sample.fields["size"]
            x, y = place if len(place) == 2 else ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
            points.setdefault(pair, []).append((x / width, y / height))
    if not pairs:
        return lambda sample: ""
    best = pairs.most_common(1)[0][0]
    shares = [median(values) for values in zip(*points[best], strict=True)] if best in points else None

    def complete(sample: Sample) -> str:
        sizes = zip(shares, sample.fields["size"], strict=True) if shares else None
        return _write(sample, *best, [share * side for share, side in sizes] if sizes else None)

    return complete


def repeat_last(sample: Sample) -> str:
    """The step before once more, as a completion; nothing at the first step, and where the step before is not known."""
    last = sample.reference["previous"]
    return "" if last is None else _write(sample, last["action"], last["target"], last["place"])


def _write(sample: Sample, action: str, target: str | None, place: list[float] | None) -> str:
    """In the form that the recipe asks for, with memories that change nothing."""
    coords = None if place is None else sample.fields["frame"].write(place)
    predicted = {"predicted_action": {"action": action, "target": target, "coords": coords}}
    empty: dict[str, Any] = {"short_term": {}, "long_term": {}, "reason": "", "predicted": predicted}
    return compact({PARTS[part]: empty[part] for part in PARTS if part in sample.fields["settings"].answer})
