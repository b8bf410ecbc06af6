"""Parse the GUI step in a completion: JSON, repaired if possible. Unparsed parts are reported, never guessed."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from toolkit.data.literals import MAX_BRACKETS, repair_json
from toolkit.data.sample import Answer, Sample
from toolkit.scoring.reasoning import without_reasoning
from toolkit.scoring.regions import Frame, order_box
from toolkit.tasks.steps.agent_memory import advance, storable
from toolkit.tasks.steps.json_format import PARTS, StepParts, parse_point_or_box, read_parts

if TYPE_CHECKING:
    from toolkit.tasks.steps.schema import StepSettings

MAX_CHARACTERS = 1 << 14
"""Maximum characters of a completion that are parsed, because the time of a repair grows with the length."""
MAX_STARTS = 3
"""Maximum number of opening brackets that are tried as the beginning of the answer."""

REPAIRED = "the JSON had to be repaired"
NO_JSON = "there is no JSON object"
NO_ACTION = "no action is predicted"
UNKNOWN_ACTION = "the action is none of data.steps.actions"
SEVERAL = "several answers that differ"
TOO_LONG = f"the completion has more than {MAX_CHARACTERS:,} characters or {MAX_BRACKETS} opening brackets"

_FENCE = re.compile(r"```[\w-]*\s*\n?(.*?)(?:```|\Z)", re.DOTALL)


def parse(completion: str, sample: Sample) -> Answer:
    """Return the GUI step of an answer.

    ``values``: action (in the recipe's spelling), target, place (2 or 4 numbers in pixels of the screenshot),
    short_term, long_term, reason, memory (both memories for the next step, merged into those of the prompt), repaired
    (whether the JSON was repaired) and faults (deviations from the requested JSON). Missing values are None. Keys can
    have other spellings, and the JSON can be in a code fence or inside text.
    """
    text, problem = without_reasoning(completion)
    if problem is None and (len(text) > MAX_CHARACTERS or text.count("{") + text.count("[") > MAX_BRACKETS):
        problem = TOO_LONG
    if problem is not None:
        return Answer(completion, {}, problem)
    objects, faults = find_objects(text)
    if not objects:
        return Answer(completion, {}, NO_JSON)
    candidates = [read_parts(storable(one)) for one in objects]
    candidates = [(parts, wrong) for parts, wrong in candidates if (parts.predicted.action or "").strip()]
    if not candidates:
        return Answer(completion, {}, NO_ACTION)
    # A model that repeats its answer is parsed, but one that offers several actions must not be rewarded for the best.
    if any(parts.predicted != candidates[0][0].predicted for parts, _ in candidates):
        return Answer(completion, {}, SEVERAL)
    parts, wrong = candidates[-1]
    settings: StepSettings = sample.fields["settings"]
    action = settings.known_action(parts.predicted.action or "")
    if action is None:
        return Answer(completion, {}, UNKNOWN_ACTION)
    place = _place(parts.predicted.coords, sample.fields["frame"], faults, gesture=settings.is_gesture(action))
    faults += [*wrong, *_missing(parts, settings)]
    values: dict[str, Any] = {
        "action": action,
        "target": (parts.predicted.target or "").strip() or None,
        "place": place,
        "short_term": parts.short_term,
        "long_term": parts.long_term,
        "reason": parts.reason,
        "repaired": REPAIRED in faults,
        "faults": faults,
    }
    after = advance(sample.fields["memory"], Answer(completion, values))
    values["memory"] = {"short_term": dict(after.short_term), "long_term": dict(after.long_term)}
    return Answer(completion, values)


def find_objects(text: str) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return the JSON objects of a text, and the deviations from one valid object.

    Nothing is repaired if a valid object has an action.
    """
    faults = []
    if fenced := _FENCE.search(text):
        text = fenced[1]
        faults.append("a code fence")
    found = list(_strict(text))
    valid = [value for value, _ in found]
    if any(map(_has_action, valid)):
        rest = text
        for _, piece in found:
            rest = rest.replace(piece, "", 1)
        faults += ["text around the JSON"] if rest.strip() else []
        faults += ["several objects"] if len(found) > 1 else []
        return valid, faults
    for start in [match.start() for match in re.finditer(r"\{", text)][:MAX_STARTS]:
        objects = _repaired(text[start:])
        if any(map(_has_action, objects)):
            return objects, [*faults, REPAIRED]
        valid = valid or objects
    return valid, faults


def _has_action(value: Mapping[str, Any]) -> bool:
    return bool(read_parts(value)[0].predicted.action)


def _strict(text: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield consecutive valid objects from the first bracket on, with their texts."""
    start = text.find("{")
    while start >= 0:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            return
        yield value, text[start:end]
        start = text.find("{", end)


def _repaired(text: str) -> list[Mapping[str, Any]]:
    try:
        value = repair_json(text)
    except ValueError:
        return []
    listed = value if isinstance(value, list) else [value]
    return [one for one in listed if isinstance(one, dict) and one]


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_reject_constant)


def _place(value: Any, frame: Frame, faults: list[str], *, gesture: bool) -> list[float] | None:
    """Return the coordinates in pixels. Coordinates outside the image are kept. A gesture keeps its direction."""
    try:
        numbers = parse_point_or_box(value, gesture=gesture)
    except ValueError:
        faults.append("the coordinates cannot be read")
        return None
    if numbers is None:
        return None
    place = frame.read(numbers)
    return list(order_box(*place)) if len(place) == 4 and not gesture else place


def _missing(parts: StepParts, settings: "StepSettings") -> list[str]:
    return [f"no {PARTS[part]}" for part in settings.answer if getattr(parts, part) is None]
