"""Rewards for steps: action, target, target_fuzzy, grounding, distance, iou, memory, json.

``sample.reference`` and ``answer.values`` are those of the task ``steps``: places in pixels of the screenshot. A part
that the answer lacks earns nothing; whether a reward applies depends on the reference alone.
"""

import math
from collections.abc import Mapping, Sequence
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


def _given(**values: Any) -> Answer:
    """An answer with these values, for the examples."""
    return Answer("…", {"action": None, "target": None, "place": None, "faults": [], **values})


def action(sample: Sample, answer: Answer) -> float:
    """1 for the right action.

    >>> action(EXAMPLE, _given(action="CLICK")), action(EXAMPLE, _given(action="ZOOM")), action(EXAMPLE, _given())
    (1.0, 0.0, 0.0)
    """
    return float(answer.values.get("action") == sample.reference["action"])


def target(sample: Sample, answer: Answer) -> float | None:
    """1 for the same target but for case, blanks and punctuation; None where the reference names none.

    >>> [target(EXAMPLE, _given(target=read)) for read in ("load-volume.", "Save", None)]
    [1.0, 0.0, 0.0]
    """
    if sample.reference["target"] is None:
        return None
    return float(_target(answer) == label_text(sample.reference["target"]))


def target_fuzzy(sample: Sample, answer: Answer) -> float | None:
    """The share of the two targets' characters that agree (rapidfuzz's ratio); None where the reference names none.

    >>> round(target_fuzzy(EXAMPLE, _given(target="Load volumes")), 2)  # 2 * 11 of 11 + 12 characters
    0.96
    """
    if sample.reference["target"] is None:
        return None
    read = _target(answer)
    return fuzz.ratio(read, label_text(sample.reference["target"])) / 100 if read else 0.0


def grounding(sample: Sample, answer: Answer) -> float | None:
    """1 for a point in the reference's box; where that has only a point, ``distance``; None where it has no place.

    A box that is answered counts by its middle.

    >>> [grounding(EXAMPLE, _given(place=read)) for read in ([101, 31], [99, 31], None)]
    [1.0, 0.0, 0.0]
    """
    return distance(sample, answer) if sample.reference["box"] is None else in_box(sample, answer)


def in_box(sample: Sample, answer: Answer) -> float | None:
    """1 for a point in the reference's box, without its right and lower edge; None where that has no box."""
    box = sample.reference["box"]
    if box is None:
        return None
    point = _middle(answer.values.get("place"))
    return float(point is not None and box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3])


def distance(sample: Sample, answer: Answer) -> float | None:
    """1 minus the distance to the reference's point over the screen's diagonal, at least 0; None where it has no place.

    >>> distance(EXAMPLE, _given(place=[110, 90])), distance(EXAMPLE, _given())  # 50 pixels of 500
    (0.9, 0.0)
    """
    wanted, point = _middle(sample.reference["place"]), _middle(answer.values.get("place"))
    if wanted is None:
        return None
    if point is None:
        return 0.0
    return max(0.0, 1 - math.dist(wanted, point) / math.hypot(*sample.fields["size"]))


def iou(sample: Sample, answer: Answer) -> float | None:
    """Intersection over union where the reference is to be answered with a box; None where it is a point or no place.

    >>> area = Sample("e", "steps", "t", (), {}, {**EXAMPLE.reference, "place": [0, 0, 10, 10]})
    >>> iou(area, _given(place=[0, 0, 10, 5])), iou(area, _given(place=[5, 5])), iou(EXAMPLE, _given(place=[1, 2]))
    (0.5, 0.0, None)
    """
    wanted, read = sample.reference["place"], answer.values.get("place")
    if wanted is None or len(wanted) != 4:
        return None
    return box_iou(tuple(read), tuple(wanted)) if read is not None and len(read) == 4 else 0.0


def memory(sample: Sample, answer: Answer) -> float | None:
    """F1 of the completed subtasks that the next step's memory names, against the reference's.

    That memory is the answer's, merged into the one that the prompt showed. None where the reference names no list of
    completed subtasks, and where the recipe asks for no long-term memory; where the list is empty, 1 for an empty one.

    >>> done = {"completed_subtasks": ["Open the study", "choose the series", "zoom in"]}
    >>> memory(EXAMPLE, _given(memory={"short_term": {}, "long_term": done}))  # 2 of 3 named, and of 2 wanted
    0.8
    """
    wanted = _wanted_subtasks(sample)
    if wanted is None:
        return None
    if answer.problem is not None:
        return 0.0
    named = subtasks(answer.values.get("memory", {}).get("long_term")) or set()
    if not wanted and not named:
        return 1.0
    return 2 * len(wanted & named) / (len(wanted) + len(named))


def json(sample: Sample, answer: Answer) -> float:
    """1 for valid JSON with every part that was asked for and nothing besides.

    >>> json(EXAMPLE, _given(action="CLICK")), json(EXAMPLE, _given(action="CLICK", faults=["no Reason"]))
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
"""reward -> default weight. 0: the reward is off unless the recipe gives it a weight."""

ALL_OR_NOTHING = frozenset({"action", "target", "json"})
"""Rewards that are 0 or 1 for nearly every answer."""


def subtasks(long_term: Mapping[str, Any] | None) -> set[str] | None:
    """What a long-term memory names as done, each as ``label_text``; None where it says nothing about it.

    >>> subtasks({"completed_subtasks": ["Load the scan"]}), subtasks({"overall_progress": "begun"})
    ({'load the scan'}, None)
    """
    for key, value in (long_term or {}).items():
        if key.replace("_", "").replace(" ", "").casefold() == "completedsubtasks" and value is not None:
            listed = value if isinstance(value, list | tuple) else [value]
            return {label_text(str(one)) for one in listed} - {""}
    return None


def why_action(sample: Sample, answer: Answer) -> str:
    """Both actions, or why none was read."""
    return f"read {answer.values.get('action') or _unread(answer)}, reference {sample.reference['action']}"


def why_target(sample: Sample, answer: Answer) -> str:
    """Both targets as they were compared."""
    if sample.reference["target"] is None:
        return "the reference has no target"
    return f'read "{_target(answer) or _unread(answer)}", reference "{label_text(sample.reference["target"])}"'


def why_place(sample: Sample, answer: Answer) -> str:
    """Both places in pixels of the screenshot."""
    place, box = sample.reference["place"], sample.reference["box"]
    if place is None:
        return "the reference has no place"
    read = answer.values.get("place")
    shown = [round(number, 1) for number in read] if read else _unread(answer)
    return f"read {shown}, reference {place}" + (f" in {box}" if box and box != place else "")


def why_memory(sample: Sample, answer: Answer) -> str:
    """What was named, what lacks, what was invented."""
    wanted = _wanted_subtasks(sample)
    if wanted is None:
        return "the reference names no completed subtasks, or no long-term memory is asked for"
    named = subtasks(answer.values.get("memory", {}).get("long_term")) or set()
    parts = {"named": wanted & named, "missed": wanted - named, "invented": named - wanted}
    return "; ".join(f"{part}: {', '.join(sorted(some)) or 'nothing'}" for part, some in parts.items())


def why_json(sample: Sample, answer: Answer) -> str:
    """What keeps the answer from being the JSON that was asked for."""
    return answer.problem or "; ".join(answer.values.get("faults", ())) or "valid JSON of the right form"


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
"""reward -> the reason for its value, in words."""


def _wanted_subtasks(sample: Sample) -> set[str] | None:
    settings = sample.fields.get("settings")
    asked = settings is None or "long_term" in settings.answer
    return subtasks(sample.reference["long_term"]) if asked else None


def _target(answer: Answer) -> str:
    return label_text(answer.values.get("target") or "")


def _middle(place: Sequence[float] | None) -> tuple[float, float] | None:
    if place is None:
        return None
    return (place[0], place[1]) if len(place) == 2 else ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)


def _unread(answer: Answer) -> str:
    return f"nothing ({answer.problem})" if answer.problem else "nothing"
