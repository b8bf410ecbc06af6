"""Answers without a look: the most frequent step, action or target of the training rows, and the last step again."""

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from toolkit.data.sample import Sample
from toolkit.scoring.text import label_text
from toolkit.tasks.steps.agent_memory import compact
from toolkit.tasks.steps.form import PARTS

Pair = tuple[str, str | None]
"""Action and target, as ``label_text``."""


Baseline = Callable[[Sample], str]
"""Sample -> a completion."""


def baseline(samples: Sequence[Sample]) -> Baseline:
    """Return the pair of action and target that is right most often, at the median place of its training rows.

    The place is a point, each coordinate the median in fractions of the sides.
    """
    return _always(samples, lambda pair, of: of[pair] + (of[pair[0], None] if pair[1] is not None else 0))


def action_baseline(samples: Sequence[Sample]) -> Baseline:
    """Return the most frequent action, with the target that it has most often."""
    return _always(samples, lambda pair, of: sum(n for (action, _), n in of.items() if action == pair[0]))


def target_baseline(samples: Sequence[Sample]) -> Baseline:
    """Return the most frequent target, with the action that it has most often."""
    return _always(samples, lambda pair, of: sum(n for (_, target), n in of.items() if target == pair[1] is not None))


def _always(samples: Sequence[Sample], right: Callable[[Pair, Counter[Pair]], int]) -> Baseline:
    """Return the pair with the most rows that ``right`` counts, of equals the more frequent. Targets as they are compared."""
    pairs: Counter[Pair] = Counter()
    spelled: dict[Pair, str | None] = {}
    points: dict[Pair, list[tuple[float, float]]] = {}
    for sample in samples:
        target = sample.reference["target"]
        pair = (sample.reference["action"], None if target is None else label_text(target))
        pairs[pair] += 1
        spelled.setdefault(pair, target)
        if (place := sample.reference["place"]) is not None:
            width, height = sample.fields["size"]
            x, y = place if len(place) == 2 else ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
            points.setdefault(pair, []).append((x / width, y / height))
    if not pairs:
        return lambda sample: ""
    best = max(pairs, key=lambda pair: (right(pair, pairs), pairs[pair]))
    fractions = [median(values) for values in zip(*points[best], strict=True)] if best in points else None

    def complete(sample: Sample) -> str:
        sizes = zip(fractions, sample.fields["size"], strict=True) if fractions else None
        return _write(sample, best[0], spelled[best], [fraction * side for fraction, side in sizes] if sizes else None)

    return complete


def repeat_last(sample: Sample) -> str:
    """Return the step before once more, as a completion. Nothing at the first step, and where the step before is not known."""
    last = sample.reference["previous"]
    return "" if last is None else _write(sample, last["action"], last["target"], last["place"])


def _write(sample: Sample, action: str, target: str | None, place: list[float] | None) -> str:
    """In the form that the recipe asks for, with memories that change nothing."""
    coords = None if place is None else sample.fields["frame"].write(place)
    predicted = {"predicted_action": {"action": action, "target": target, "coords": coords}}
    empty: dict[str, Any] = {"short_term": {}, "long_term": {}, "reason": "", "predicted": predicted}
    return compact({PARTS[part]: empty[part] for part in PARTS if part in sample.fields["settings"].answer})
