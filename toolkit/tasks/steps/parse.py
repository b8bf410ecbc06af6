"""Parse the GUI step in a completion: JSON, repaired if possible. Unparsed parts are reported, never guessed."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.data.cells import MOST_BRACKETS, fold, repair_json
from toolkit.data.sample import Answer, Sample
from toolkit.scoring.regions import Frame, order_box
from toolkit.tasks.steps.agent_memory import advance, storable
from toolkit.tasks.steps.coordinates import parse_point_or_box
from toolkit.tasks.steps.form import PARTS, StepForm, read_form
from toolkit.tasks.steps.settings import StepSettings

LONGEST = 1 << 14
"""Maximum characters of a completion that are parsed, because the time of a repair grows with the length."""
STARTS = 3
"""Number of opening brackets that are tried as the beginning of the answer."""

NO_JSON = "there is no JSON object"
NO_ACTION = "no action is predicted"
UNKNOWN_ACTION = "the action is none of data.steps.actions"
SEVERAL = "several answers that differ"
TOO_LONG = f"the completion has more than {LONGEST:,} characters or {MOST_BRACKETS} opening brackets"

_FENCE = re.compile(r"```[\w-]*\s*\n?(.*?)(?:```|\Z)", re.DOTALL)


def parse(completion: str, sample: Sample) -> Answer:
    """Return the GUI step of an answer.

    ``values``: action (in the recipe's spelling), target, place (2 or 4 numbers in pixels of the screenshot),
    short_term, long_term, reason, memory (both memories for the next step, merged into those of the prompt), repaired
    (whether the JSON was repaired) and faults (deviations from the requested JSON). Missing values are None. Keys can
    have other spellings, and the JSON can be in a code fence or inside text.
    """
    if len(completion) > LONGEST or completion.count("{") + completion.count("[") > MOST_BRACKETS:
        return Answer(completion, {}, TOO_LONG)
    objects, faults = find_objects(completion)
    if not objects:
        return Answer(completion, {}, NO_JSON)
    forms = [
        (form, wrong) for form, wrong in map(read_form, map(storable, objects)) if (form.predicted.action or "").strip()
    ]
    if not forms:
        return Answer(completion, {}, NO_ACTION)
    if any(form.predicted != forms[0][0].predicted for form, _ in forms):
        return Answer(completion, {}, SEVERAL)
    form, wrong = forms[-1]
    settings: StepSettings = sample.fields["settings"]
    action = known_action(form.predicted.action or "", settings)
    if action is None:
        return Answer(completion, {}, UNKNOWN_ACTION)
    place = _place(form.predicted.coords, sample.fields["frame"], faults)
    faults += [*wrong, *_missing(form, settings)]
    values: dict[str, Any] = {
        "action": action,
        "target": (form.predicted.target or "").strip() or None,
        "place": place,
        "short_term": form.short_term,
        "long_term": form.long_term,
        "reason": form.reason,
        "repaired": REPAIRED in faults,
        "faults": faults,
    }
    after = advance(sample.fields["memory"], Answer(completion, values))
    values["memory"] = {"short_term": dict(after.short_term), "long_term": dict(after.long_term)}
    return Answer(completion, values)


def known_action(text: str, settings: StepSettings) -> str | None:
    """Return the recipe's spelling of an action, or None if the recipe has no such action."""
    return {fold(action): action for action in settings.actions}.get(fold(text))


REPAIRED = "the JSON had to be repaired"


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
    for start in [match.start() for match in re.finditer(r"\{", text)][:STARTS]:
        objects = _repaired(text[start:])
        if any(map(_has_action, objects)):
            return objects, [*faults, REPAIRED]
        valid = valid or objects
    return valid, faults


def _has_action(value: Mapping[str, Any]) -> bool:
    return bool(read_form(value)[0].predicted.action)


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


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _place(value: Any, frame: Frame, faults: list[str]) -> list[float] | None:
    """Return the coordinates in pixels. Coordinates outside the image are kept."""
    try:
        numbers = parse_point_or_box(value)
    except ValueError:
        faults.append("the coordinates cannot be read")
        return None
    if numbers is None:
        return None
    place = frame.read(numbers)
    return list(order_box(*place)) if len(place) == 4 else place


def _missing(form: StepForm, settings: StepSettings) -> list[str]:
    return [f"no {PARTS[part]}" for part in settings.answer if getattr(form, part) is None]
