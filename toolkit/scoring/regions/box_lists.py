"""Lists of labelled boxes in completions: JSON, location tokens, or one line for each box. Nothing is guessed.

A part that cannot be parsed is reported. Numbers are in the convention of the model, whatever the key of a box is.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.scoring.regions.box_text import box_of, parse_box, write_box
from toolkit.scoring.regions.boxes import Box
from toolkit.scoring.regions.coordinates import Frame
from toolkit.scoring.regions.detection import MAX_BOXES, Labelled

NONE = "none"
"""A list without boxes, in the formats other than JSON."""

MAX_STARTS = 1_000
"""Maximum number of braces that begin no JSON, because each attempt can read to the end of the text."""

BRACES = f"more than {MAX_STARTS:,} braces begin no JSON"
CUT_OFF = "the list of boxes is not complete (was the completion cut off?)"
DAMAGED = "an object of the list is not valid JSON"
MALFORMED = "a box is not four numbers with an area between them"
NO_BOX = "an object of the list has a label and no box"
NO_LABEL = "a box has no label"
NO_LIST = "no list of boxes, and no statement that there are none"
TOO_MANY = f"more than {MAX_BOXES} boxes are named"
"""Problems of a completion or of a part of it."""

_FENCE = re.compile(r"```[\w-]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_TOKENS = re.compile(r"((?:<loc\d{4}>){4})([^<;\n]*)")
_TOKEN = re.compile(r"<loc\d*>?")
# The label before it is no part of the pattern, because the time of a search would grow with the cube of the length.
_BOX = re.compile(r"<bbox>([^<\n]*)</bbox>", re.IGNORECASE)
_TAG = re.compile(r"</?\w*>")
_EMPTY = frozenset({"none", "no finding", "no findings", "nothing"})
_EMPTY_LIST = re.compile(r"\[\s*\]")
_BOX_KEYS = ("box_2d", "bbox_2d", "bbox", "box", "bounding_box")
_LABEL_KEYS = ("label", "class", "name", "category", "class_name")


@dataclass(frozen=True, slots=True)
class BoxList:
    """Boxes with the label of the text in the order of the text, the reasons of unparsed parts, and a problem."""

    boxes: tuple[Labelled, ...] = ()
    unread: tuple[str, ...] = ()
    problem: str | None = None


def write_boxes(boxes: Sequence[Labelled], frame: Frame, key: str) -> str:
    """Return a list of boxes in the model's convention: JSON with this key, tokens, or lines if the key is empty.

    >>> from toolkit.scoring.regions import COORDINATES
    >>> write_boxes([("nodule", (10, 20, 30, 60))], Frame((100, 200), (100, 200), COORDINATES["thousand_yx"]), "box_2d")
    '[{"box_2d": [100, 100, 300, 300], "label": "nodule"}]'
    """
    texts = [(label, write_box(frame, box)) for label, box in boxes]
    if frame.coordinates.tokens:
        return " ; ".join(f"{box} {label}" for label, box in texts) or NONE
    if key:
        items = (f'{{"{key}": {box}, "label": {json.dumps(label, ensure_ascii=False)}}}' for label, box in texts)
        return f"[{', '.join(items)}]"
    return "\n".join(f"{label} <bbox>{box}</bbox>" for label, box in texts) or NONE


def parse_boxes(text: str, frame: Frame) -> BoxList:
    """Return the boxes of a completion in pixels.

    JSON can be in code fences or inside text, and one object is a list of one. A list that was cut off
    keeps its complete boxes.
    """
    text = "\n".join(_FENCE.findall(text)) or text
    statement = text.strip().strip(".").lower()
    if statement in _EMPTY or _EMPTY_LIST.fullmatch(statement):
        return BoxList()
    unread: list[str] = []
    found = list(_parse_any(text, frame, unread))
    if len(found) > MAX_BOXES:
        unread.append(TOO_MANY)
    if not found:
        return BoxList(problem=unread[0] if unread else NO_LIST)
    return BoxList(tuple(found[:MAX_BOXES]), tuple(unread))


def _parse_any(text: str, frame: Frame, unread: list[str]) -> Iterator[Labelled]:
    if _TOKEN.search(text):
        return _from_tokens(text, frame, unread)
    if "<bbox" in text.lower():
        return _from_lines(text, frame, unread)
    return _from_json(text, frame, unread)


def _from_tokens(text: str, frame: Frame, unread: list[str]) -> Iterator[Labelled]:
    for tokens, label in _TOKENS.findall(text):
        yield from _checked(label, parse_box(tokens, frame), unread)
    if _TOKEN.search(_TOKENS.sub("", text)):
        unread.append(CUT_OFF)


def _from_lines(text: str, frame: Frame, unread: list[str]) -> Iterator[Labelled]:
    end = 0
    for found in _BOX.finditer(text):
        label = text[max(end, text.rfind("\n", end, found.start()) + 1) : found.start()]
        yield from _checked(_TAG.sub(" ", label), parse_box(found[1], frame), unread)
        end = found.end()
    if "<bbox" in _BOX.sub("", text).lower():
        unread.append(CUT_OFF)


def _from_json(text: str, frame: Frame, unread: list[str]) -> Iterator[Labelled]:
    """Yield the boxes of the objects in the text. Each object is decoded on its own, so that a cut list is no loss."""
    start, end, in_list, failed = text.find("{"), 0, None, 0
    while start >= 0 and len(unread) <= MAX_BOXES:
        if failed == MAX_STARTS:
            unread += [BRACES] if in_list is not None else []  # without objects, there is no list
            return
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            failed += 1
            following = text.find("{", start + 1)
            is_box = any(f'"{key}"' in text[start : following if following >= 0 else None] for key in _BOX_KEYS)
            # Braces of a sentence are no JSON. An object that was cut off has no closing brace after it.
            if (is_box or in_list is not None) and "}" not in text[start:]:
                unread.append(CUT_OFF)
                return
            unread += [DAMAGED] if is_box else []
            start = following
            continue
        for one in _objects(value):
            in_list = text[:start].rstrip().endswith("[") if in_list is None else in_list
            yield from _labelled(one, frame, unread)
        start = text.find("{", end)
    if text.rstrip().endswith(("[", ",")) or (in_list and "]" not in text[end:]):
        unread.append(CUT_OFF)


def _labelled(one: Mapping[str, Any], frame: Frame, unread: list[str]) -> Iterator[Labelled]:
    if not any(key in one for key in _BOX_KEYS):
        unread.append(NO_BOX)
        return
    label = _first(one, _LABEL_KEYS)
    yield from _checked(label if isinstance(label, str) else "", _box(_first(one, _BOX_KEYS), frame), unread)


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the objects with a box or a label, on any level. A list of objects is not one of them."""
    if isinstance(value, Mapping):
        folded = {str(key).lower(): one for key, one in value.items()}
        inner = [one for one in value.values() if isinstance(one, Mapping | list)]
        if any(key in folded for key in _BOX_KEYS) or (not inner and any(key in folded for key in _LABEL_KEYS)):
            yield folded
        else:
            for one in inner:
                yield from _objects(one)
    elif isinstance(value, list):
        for one in value:
            yield from _objects(one)


def _box(value: Any, frame: Frame) -> Box | None:
    if isinstance(value, str):
        return parse_box(value, frame)
    if not isinstance(value, list) or len(value) != 4:
        return None
    if any(isinstance(one, bool) or not isinstance(one, int | float) for one in value):
        return None
    # The comparison is false for NaN. math.isfinite would fail for an integer beyond the range of floats.
    if not all(abs(one) < 1e6 for one in value):
        return None
    return box_of(value, frame)


def _checked(label: str, box: Box | None, unread: list[str]) -> Iterator[Labelled]:
    label = label.strip(" \t\r\n:-–,.;*")
    if box is None:
        unread.append(MALFORMED)
    elif not label:
        unread.append(NO_LABEL)
    else:
        yield label, box


def _first(value: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((value[key] for key in keys if key in value), None)
