"""Scores, labels and baselines of steps: the most frequent step, action or target, and the last step again."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.text import label_text
from toolkit.tasks.steps import rewards
from toolkit.tasks.steps.agent_memory import compact
from toolkit.tasks.steps.json_format import PARTS

RESULTS_BY = ("action", "application")
"""Columns with a separate result for each value."""

Pair = tuple[str, str | None]
"""Action and target, as ``label_text``."""


Baseline = Callable[[Sample], str]
"""Sample -> a completion."""


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return step (correct action, and target if the reference has one), its parts, grounding, memory and json.

    Scores:
        step: right action, and right target if the reference has one
        action: reward ``action``
        target: reward ``target``
        target_fuzzy: reward ``target_fuzzy``
        grounding: reward ``grounding``
        in_box: 1 for a point in the reference box
        distance: reward ``distance``
        iou: reward ``iou``
        inside: fraction of answers with coordinates inside the screenshot
        memory: reward ``memory``
        json: reward ``json``
    """
    action, target_ = rewards.action(sample, answer), rewards.target(sample, answer)
    return {
        "step": action if target_ is None else action * target_,
        "action": action,
        "target": target_,
        "target_fuzzy": rewards.target_fuzzy(sample, answer),
        "grounding": rewards.grounding(sample, answer),
        "in_box": rewards.in_box(sample, answer),
        "distance": rewards.distance(sample, answer),
        "iou": rewards.iou(sample, answer),
        "inside": rewards.inside(sample, answer),
        "memory": rewards.memory(sample, answer),
        "json": rewards.json(sample, answer),
    }


def labels(sample: Sample, answer: Answer) -> tuple[str, str | None]:
    """Return the reference and the parsed action."""
    return sample.reference["action"], answer.values.get("action")


def baseline(samples: Sequence[Sample]) -> Baseline:
    """Return the pair of action and target that is correct most often, at the median coordinates of its training rows.

    The coordinates are a point. Each one is the median as a fraction of the side.
    """
    # A row without a target accepts any target, so a pair with a target is also correct for those rows.
    return _always(samples, lambda pair, of: of[pair] + (of[pair[0], None] if pair[1] is not None else 0))


def action_baseline(samples: Sequence[Sample]) -> Baseline:
    """Return the most frequent action with its most frequent target."""
    return _always(samples, lambda pair, of: sum(n for (action, _), n in of.items() if action == pair[0]))


def target_baseline(samples: Sequence[Sample]) -> Baseline:
    """Return the most frequent target with its most frequent action."""
    return _always(samples, lambda pair, of: sum(n for (_, target), n in of.items() if target == pair[1] is not None))


def _always(samples: Sequence[Sample], count_correct: Callable[[Pair, Counter[Pair]], int]) -> Baseline:
    """Return the pair for which ``count_correct`` is largest. Ties go to the more frequent pair."""
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
    best = max(pairs, key=lambda pair: (count_correct(pair, pairs), pairs[pair]))
    fractions = [median(values) for values in zip(*points[best], strict=True)] if best in points else None

    def complete(sample: Sample) -> str:
        sizes = zip(fractions, sample.fields["size"], strict=True) if fractions else None
        return _write(sample, best[0], spelled[best], [fraction * side for fraction, side in sizes] if sizes else None)

    return complete


def repeat_last(sample: Sample) -> str:
    """Return the previous step as a completion. It is empty for the first step and after an unknown step."""
    last = sample.reference["previous"]
    return "" if last is None else _write(sample, last["action"], last["target"], last["place"])


def _write(sample: Sample, action: str, target: str | None, place: list[float] | None) -> str:
    """Return the completion in the recipe's format, with memories that change nothing."""
    coords = None if place is None else sample.fields["frame"].write(place)
    predicted = {"predicted_action": {"action": action, "target": target, "coords": coords}}
    empty: dict[str, Any] = {"short_term": {}, "long_term": {}, "reason": "", "predicted": predicted}
    return compact({PARTS[part]: empty[part] for part in PARTS if part in sample.fields["settings"].answer})
