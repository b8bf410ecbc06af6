"""Rewards for GUI steps: action, target, target_fuzzy, grounding, distance, iou, memory, json.

``sample.reference`` and ``answer.values`` are those of the task ``steps``, with coordinates in pixels of the
screenshot. A part that the answer lacks scores 0. Whether a reward applies depends on the reference alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rapidfuzz import fuzz

from toolkit.data.sample import Answer, Reward, Sample
from toolkit.scoring.regions import box_iou
from toolkit.scoring.text import label_text

EXAMPLE = Sample(
    id="example",
    task="steps",
    group="task-1",
    images=(),
    fields={"size": (400, 300)},
    reference={
        "action": "CLICK",
        "target": "Load volume",
        "place": [110, 40],
        "box": [100, 30, 120, 50],
        "long_term": {"completed_subtasks": ["open the study", "choose the series"]},
    },
)
"""The sample of the worked examples in this file."""

SCROLL = replace(
    EXAMPLE, reference={**EXAMPLE.reference, "action": "SCROLL", "place": [110, 40, 110, 10], "gesture": True}
)
"""A gesture from below to above."""


def _answer(**values: Any) -> Answer:
    """Return an answer with these values, for the examples."""
    return Answer("…", {"action": None, "target": None, "place": None, "faults": [], **values})


def action(sample: Sample, answer: Answer) -> float:
    """Return 1 for the correct action.

    >>> action(EXAMPLE, _answer(action="CLICK")), action(EXAMPLE, _answer(action="ZOOM")), action(EXAMPLE, _answer())
    (1.0, 0.0, 0.0)
    """
    return float(answer.values.get("action") == sample.reference["action"])


def target(sample: Sample, answer: Answer) -> float | None:
    """Return 1 for the same target, ignoring case, blanks and punctuation. None if the reference names none.

    >>> [target(EXAMPLE, _answer(target=text)) for text in ("load-volume.", "Save", None)]
    [1.0, 0.0, 0.0]
    """
    if sample.reference["target"] is None:
        return None
    return float(_target(answer) == label_text(sample.reference["target"]))


def target_fuzzy(sample: Sample, answer: Answer) -> float | None:
    """Return the character similarity of the two targets (rapidfuzz's ratio). None if the reference names none.

    >>> round(target_fuzzy(EXAMPLE, _answer(target="Load volumes")), 2)  # 2 * 11 of 11 + 12 characters
    0.96
    """
    if sample.reference["target"] is None:
        return None
    read = _target(answer)
    return fuzz.ratio(read, label_text(sample.reference["target"])) / 100 if read else 0.0


def grounding(sample: Sample, answer: Answer) -> float | None:
    """Return 1 for a point in the reference's box. If the reference has only a point, return ``distance``.

    None if the reference has no coordinates. A box in the answer counts by its centre.

    >>> [grounding(EXAMPLE, _answer(place=point)) for point in ([101, 31], [99, 31], None)]
    [1.0, 0.0, 0.0]
    """
    return distance(sample, answer) if sample.reference["box"] is None else in_box(sample, answer)


def in_box(sample: Sample, answer: Answer) -> float | None:
    """Return 1 for a point in the reference's box, right and lower edge excluded. None if the reference has no box.

    A gesture must start in the box and have the direction of the reference: the same axis and the same sign.

    >>> in_box(EXAMPLE, _answer(place=[119, 49])), in_box(EXAMPLE, _answer(place=[120, 49]))
    (1.0, 0.0)
    >>> [in_box(SCROLL, _answer(place=place)) for place in ([110, 40, 112, 20], [110, 20, 110, 40], [110, 40])]
    [1.0, 0.0, 0.0]
    """
    box, place = sample.reference["box"], answer.values.get("place")
    if box is None:
        return None
    point: tuple[float, float] | None = None
    if sample.reference.get("gesture"):
        if place is not None and _direction(place) == _direction(sample.reference["place"]):
            point = place[0], place[1]
    else:
        point = _middle(place)
    return float(point is not None and box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3])


def distance(sample: Sample, answer: Answer) -> float | None:
    """Return 1 minus the distance to the reference's point divided by the screen's diagonal, at least 0.

    For a gesture, it is the mean of both points. None if the reference has no coordinates.

    >>> distance(EXAMPLE, _answer(place=[110, 90])), distance(EXAMPLE, _answer())  # 50 pixels of 500
    (0.9, 0.0)
    >>> [distance(SCROLL, _answer(place=place)) for place in ([110, 40, 110, 10], [110, 10, 110, 40])]
    [1.0, 0.94]
    """
    if sample.reference.get("gesture"):
        return _gesture_distance(sample, answer.values.get("place"))
    expected, point = _middle(sample.reference["place"]), _middle(answer.values.get("place"))
    if expected is None:
        return None
    if point is None:
        return 0.0
    return max(0.0, 1 - math.dist(expected, point) / math.hypot(*sample.fields["size"]))


def iou(sample: Sample, answer: Answer) -> float | None:
    """Return the box IoU if the reference is a box. None if it is a point, a gesture or missing.

    >>> area = Sample("e", "steps", "t", (), {}, {**EXAMPLE.reference, "place": [0, 0, 10, 10]})
    >>> iou(area, _answer(place=[0, 0, 10, 5])), iou(area, _answer(place=[5, 5])), iou(EXAMPLE, _answer(place=[1, 2]))
    (0.5, 0.0, None)
    """
    expected, read = sample.reference["place"], answer.values.get("place")
    if expected is None or len(expected) != 4 or sample.reference.get("gesture"):
        return None
    return box_iou(tuple(read), tuple(expected)) if read is not None and len(read) == 4 else 0.0


def inside(sample: Sample, answer: Answer) -> float | None:
    """Return 1 for coordinates inside the screenshot, 0 for others. None if the answer has no coordinates.

    >>> [inside(EXAMPLE, _answer(place=place)) for place in ([400, 300], [401, 10], None)]
    [1.0, 0.0, None]
    """
    place = answer.values.get("place")
    if place is None:
        return None
    return float(all(0 <= number <= side for number, side in zip(place, sample.fields["size"] * 2, strict=False)))


def memory(sample: Sample, answer: Answer) -> float | None:
    """Return F1 of the completed subtasks in the next step's agent memory, against the reference.

    That memory is the answer's, merged into the one of the prompt. None if the reference has no list of completed
    subtasks, or if the recipe requests no long-term memory. For an empty reference list, 1 for an empty list.

    >>> done = {"completed_subtasks": ["Open the study", "choose the series", "zoom in"]}
    >>> memory(EXAMPLE, _answer(memory={"short_term": {}, "long_term": done}))  # 2 of 3 named, and of 2 expected
    0.8
    """
    expected = _expected_subtasks(sample)
    if expected is None:
        return None
    if answer.problem is not None:
        return 0.0
    named = subtasks(answer.values.get("memory", {}).get("long_term")) or set()
    if not expected and not named:
        return 1.0
    return 2 * len(expected & named) / (len(expected) + len(named))


def json(sample: Sample, answer: Answer) -> float:
    """Return 1 for valid JSON with exactly the requested parts.

    >>> json(EXAMPLE, _answer(action="CLICK")), json(EXAMPLE, _answer(action="CLICK", faults=["no Reason"]))
    (1.0, 0.0)
    """
    return float(answer.problem is None and answer.values.get("faults") == [])


REWARDS: Mapping[str, Reward] = {
    "action": action,
    "target": target,
    "target_fuzzy": target_fuzzy,
    "grounding": grounding,
    "distance": distance,
    "iou": iou,
    "memory": memory,
    "json": json,
}


REWARD_WEIGHTS: Mapping[str, float] = {
    "action": 0.4,
    "target": 0.2,
    "target_fuzzy": 0.0,
    "grounding": 0.2,
    "distance": 0.0,
    "iou": 0.0,
    "memory": 0.1,
    "json": 0.1,
}
"""Maps rewards to default weights. A reward with weight 0 is off unless the recipe sets a weight."""

ALL_OR_NOTHING = frozenset({"action", "target", "json"})
"""Rewards that are 0 or 1 for nearly every answer."""


def subtasks(long_term: Mapping[str, Any] | None) -> set[str] | None:
    """Return the completed subtasks of a long-term memory, each as ``label_text``, or None if it has no such list.

    >>> subtasks({"completed_subtasks": ["Load the scan"]}), subtasks({"overall_progress": "begun"})
    ({'load the scan'}, None)
    """
    for key, value in (long_term or {}).items():
        if key.replace("_", "").replace(" ", "").casefold() == "completedsubtasks" and value is not None:
            listed = value if isinstance(value, list | tuple) else [value]
            return {label_text(str(one)) for one in listed} - {""}
    return None


def why_action(sample: Sample, answer: Answer) -> str:
    """Return both actions, or why none was parsed."""
    return f"read {answer.values.get('action') or _unread(answer)}, reference {sample.reference['action']}"


def why_target(sample: Sample, answer: Answer) -> str:
    """Return both targets as they were compared."""
    if sample.reference["target"] is None:
        return "the reference has no target"
    return f'read "{_target(answer) or _unread(answer)}", reference "{label_text(sample.reference["target"])}"'


def why_place(sample: Sample, answer: Answer) -> str:
    """Return both coordinates in pixels of the screenshot."""
    place, box = sample.reference["place"], sample.reference["box"]
    if place is None:
        return "the reference has no coordinates"
    read = answer.values.get("place")
    shown = [round(number, 1) for number in read] if read else _unread(answer)
    return f"read {shown}, reference {place}" + (f" in {box}" if box and box != place else "")


def why_memory(sample: Sample, answer: Answer) -> str:
    """Return the named, missing and invented subtasks."""
    expected = _expected_subtasks(sample)
    if expected is None:
        return "the reference names no completed subtasks, or no long-term memory is requested"
    named = subtasks(answer.values.get("memory", {}).get("long_term")) or set()
    parts = {"named": expected & named, "missed": expected - named, "invented": named - expected}
    return "; ".join(f"{part}: {', '.join(sorted(some)) or 'nothing'}" for part, some in parts.items())


def why_json(sample: Sample, answer: Answer) -> str:
    """Return the deviations from the requested JSON."""
    return answer.problem or "; ".join(answer.values.get("faults", ())) or "valid JSON with the requested parts"


WHY = {
    "action": why_action,
    "target": why_target,
    "target_fuzzy": why_target,
    "grounding": why_place,
    "distance": why_place,
    "iou": why_place,
    "memory": why_memory,
    "json": why_json,
}
"""Reward -> explanation of its value."""


def _expected_subtasks(sample: Sample) -> set[str] | None:
    settings = sample.fields.get("settings")
    requested = settings is None or "long_term" in settings.answer
    return subtasks(sample.reference["long_term"]) if requested else None


def _target(answer: Answer) -> str:
    return label_text(answer.values.get("target") or "")


def _middle(place: Sequence[float] | None) -> tuple[float, float] | None:
    if place is None:
        return None
    return (place[0], place[1]) if len(place) == 2 else ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)


def _direction(place: Sequence[float]) -> tuple[int, bool] | None:
    """Return the main axis of a gesture (0 for x), and whether it goes right or down. None for a point."""
    if len(place) != 4:
        return None
    x, y = place[2] - place[0], place[3] - place[1]
    return (0, x > 0) if abs(x) > abs(y) else (1, y > 0)


def _gesture_distance(sample: Sample, read: Sequence[float] | None) -> float:
    if read is None or len(read) != 4:
        return 0.0
    expected = sample.reference["place"]
    away = (math.dist(expected[:2], read[:2]) + math.dist(expected[2:], read[2:])) / 2
    return max(0.0, 1 - away / math.hypot(*sample.fields["size"]))


def _unread(answer: Answer) -> str:
    return f"nothing ({answer.problem})" if answer.problem else "nothing"
