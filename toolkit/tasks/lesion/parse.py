"""Parse the lesions in a completion: tags, one line per lesion, or JSON. Unparsed parts are reported, never guessed."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.reasoning import without_reasoning
from toolkit.scoring.regions import Frame, parse_box, parse_location, parse_numbers
from toolkit.tasks.lesion.schema import LesionSettings

PARTS = ("diagnosis", "location", "size", "features", "bbox", "polygon")
MAX_LESIONS = 32
"""Maximum number of lesions per answer. Matching more would dominate the time of an optimizer step."""

MAX_STARTS = 1_000
"""Maximum number of brackets from which JSON is tried, because each attempt can read to the end of the text."""

BOX_MALFORMED = "the box is not four numbers with an area between them"
BRACKETS = f"more than {MAX_STARTS:,} brackets begin no JSON with parts of an answer"
JSON_INCOMPLETE = "objects after the first JSON are not read (was the completion cut off?)"
LOCATION_UNKNOWN = "the text names no location"
NO_PARTS = "no tag and no JSON with parts of an answer"
POLYGON_MALFORMED = "the polygon is not a list of three or more [x, y]"
TAG_UNPAIRED = "{tag} has no counterpart (was the completion cut off?)"
TOO_MANY_LESIONS = f"more than {MAX_LESIONS} lesions are named"
"""Problems of a completion or of a part of it. An evaluation counts answers by problem."""

# One pattern for a part with its closing tag would search for the tag again from every opening one, in square time.
_OPENING = re.compile(rf"<({'|'.join(PARTS)})>", re.IGNORECASE)
_CLOSING = {part: re.compile(f"</{part}>", re.IGNORECASE) for part in PARTS}
_UNPAIRED = re.compile(rf"</?({'|'.join(PARTS)})>", re.IGNORECASE)
_FENCE = re.compile(r"```[\w-]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_POINT = re.compile(r"[\[(]\s*([^\[\]()]*?)\s*[\])]")
_PART_OF_KEY = {
    "label": "diagnosis",
    "disease": "diagnosis",
    "class": "diagnosis",
    "dx": "diagnosis",
    "place": "location",
    "position": "location",
    "box": "bbox",
    "bbox_2d": "bbox",
    "box_2d": "bbox",
    "bounding_box": "bbox",
    "segmentation": "polygon",
}
"""Keys of JSON answers -> part."""


def parse(completion: str, sample: Sample) -> Answer:
    """Return the lesions of an answer, in pixels of the shown image.

    ``values``: lesions (each with diagnosis: a code, place: a cell, box and polygon, or None), diagnosis (the common
    code of all lesions, or None) and unread (why a part was not parsed). A box can have floats, swapped corners, round
    or no brackets, and can be in a code fence. JSON with the parts as keys is also accepted. Coordinates outside the
    image are kept, because the scores clip them.
    """
    settings, frame = sample.fields["settings"], sample.fields["frame"]
    text, problem = without_reasoning(completion)
    if problem is not None:
        return Answer(completion, {}, problem)
    text = fenced[1] if (fenced := _FENCE.search(text)) else text
    found, others = _paired(text)
    unread: list[str] = []
    raw = list(_tagged(found)) or find_parts(text, unread)
    if rest := _UNPAIRED.search(others):
        unread.append(TAG_UNPAIRED.format(tag=rest[0]))
    if len(raw) > MAX_LESIONS:
        unread.append(TOO_MANY_LESIONS)
    lesions = [_lesion(parts, settings, frame, unread) for parts in raw[:MAX_LESIONS]]
    if not any(value is not None for lesion in lesions for value in lesion.values()):
        return Answer(completion, {}, unread[0] if unread else NO_PARTS)
    named = {lesion["diagnosis"] for lesion in lesions} - {None}
    values = {"diagnosis": named.pop() if len(named) == 1 else None, "lesions": lesions, "unread": unread}
    return Answer(completion, values)


def _paired(text: str) -> tuple[list[tuple[str, str]], str]:
    """Return part and content of each opening tag with its closing one, and the text outside of them."""
    found, others, end = [], [], 0
    never_closed: set[str] = set()
    for opening in _OPENING.finditer(text):
        name = opening[1].lower()
        if opening.start() < end or name in never_closed:
            continue
        closing = _CLOSING[name].search(text, opening.end())
        if closing is None:
            never_closed.add(name)
            continue
        found.append((name, text[opening.end() : closing.start()]))
        others.append(text[end : opening.start()])
        end = closing.end()
    return found, "".join((*others, text[end:]))


def _tagged(found: Iterable[tuple[str, str]]) -> Iterator[Mapping[str, str]]:
    """Yield one mapping per lesion. A repeated tag begins the next lesion."""
    parts: dict[str, str] = {}
    for name, content in found:
        if name in parts:
            yield parts
            parts = {}
        parts[name] = content
    if parts:
        yield parts


def find_parts(text: str, unread: list[str]) -> list[Mapping[str, str]]:
    """Return the objects of the first JSON text that has any. Further objects after it are reported."""
    for number, start in enumerate(match.start() for match in re.finditer(r"[\[{]", text)):
        if number == MAX_STARTS:
            unread.append(BRACKETS)
            break
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if found := list(_objects(value)):
            unread += [JSON_INCOMPLETE] if "{" in text[end:] else []
            return found
    return []


def _objects(value: Any) -> Iterator[Mapping[str, str]]:
    listed = value if isinstance(value, list) else value.get("lesions", [value]) if isinstance(value, dict) else []
    for one in listed if isinstance(listed, list) else []:
        if isinstance(one, dict):
            parts = {_PART_OF_KEY.get(str(key).lower(), str(key).lower()): content for key, content in one.items()}
            known = {part: _as_text(parts[part]) for part in PARTS if part in parts}
            if known:
                yield known


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _lesion(parts: Mapping[str, str], settings: LesionSettings, frame: Frame, unread: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"diagnosis": None, "place": None, "box": None, "polygon": None}
    if "diagnosis" in parts:
        found["diagnosis"], problem = settings.labels.read(parts["diagnosis"])
        if problem:
            unread.append(problem)
    if "location" in parts:
        place = parse_location(parts["location"], settings.grid)
        found["place"] = None if place is None else list(place)
        if place is None:
            unread.append(LOCATION_UNKNOWN)
    if "bbox" in parts:
        box = parse_box(parts["bbox"], frame)
        found["box"] = None if box is None else list(box)
        if box is None:
            unread.append(BOX_MALFORMED)
    if "polygon" in parts:
        found["polygon"] = _polygon(parts["polygon"], frame)
        if found["polygon"] is None:
            unread.append(POLYGON_MALFORMED)
    return found


def _polygon(text: str, frame: Frame) -> list[list[float]] | None:
    points = [parse_numbers(point) for point in _POINT.findall(text)]
    if len(points) < 3 or any(len(point) != 2 for point in points):
        return None
    return [frame.read(point) for point in points]
