"""Agent memory that is passed from GUI step to GUI step: a pure state machine.

The memory in an answer is merged key by key. A key that the answer omits, sets to null or fills with less structure
keeps its value. An unparsed answer changes nothing and counts as a failure. Sizes are bounded, so that a model that
repeats itself cannot fill its own prompt.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from toolkit.data.sample import Answer

MAX_KEYS = 32
"""Maximum number of keys in a memory or in a table inside it. Further keys are rejected."""
MAX_ITEMS = 64
"""Maximum number of items in a list. The last items are kept."""
MAX_TEXT = 2000
"""Maximum characters of a text. The rest is cut off."""
MAX_KEY = 100
"""Maximum characters of a key. A longer key is rejected."""
MAX_DEPTH = 3
"""Maximum nesting of lists and tables below a key. Deeper values are rejected."""
MAX_NUMBER = 10**15
"""Maximum absolute value of a number. Larger and non-finite numbers are rejected."""

FORGET_PROBABILITY = 0.5
"""Probability with which ``thin`` removes an entry."""

_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class AgentMemory:
    """Agent memory before a GUI step, with counts of unparsed answers (``failures``) and cut values (``cut``)."""

    short_term: Mapping[str, Any] = field(default_factory=dict)
    long_term: Mapping[str, Any] = field(default_factory=dict)
    failures: int = 0
    cut: int = 0


EMPTY = AgentMemory()
"""The memory before the first GUI step."""


def advance(memory: AgentMemory, answer: Answer) -> AgentMemory:
    """Return the memory before the next step. ``answer.values`` has short_term and long_term, each a mapping or None.

    >>> known = advance(EMPTY, Answer("…", {"long_term": {"completed_subtasks": ["load"], "progress": "begun"}}))
    >>> advance(known, Answer("…", {"long_term": {"progress": "half"}})).long_term
    {'completed_subtasks': ['load'], 'progress': 'half'}
    >>> advance(known, Answer("?", {}, "no JSON")) == AgentMemory(known.short_term, known.long_term, failures=1)
    True
    """
    if answer.problem is not None:
        return replace(memory, failures=memory.failures + 1)
    short, cut_short = _merged(memory.short_term, answer.values.get("short_term"))
    long, cut_long = _merged(memory.long_term, answer.values.get("long_term"))
    return AgentMemory(short, long, memory.failures, memory.cut + cut_short + cut_long)


def replay(lines: Iterable[Mapping[str, Any]], start: AgentMemory = EMPTY) -> list[AgentMemory]:
    """Return the memory after each line of an episode's predictions (``completion``, ``answer``, ``problem``)."""
    memories = []
    for line in lines:
        start = advance(start, Answer(line.get("completion", ""), line["answer"], line["problem"]))
        memories.append(start)
    return memories


def compact(value: Any) -> str:
    """Return a memory or answer as JSON in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=dict)


def storable(value: Any) -> Any:
    """Return the value after a round trip through JSON lines: no half surrogate pairs, null for non-finite numbers."""
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [storable(one) for one in value]
    if isinstance(value, Mapping):
        return {_whole(str(key)): storable(one) for key, one in value.items()}
    return value


def thin(memory: AgentMemory, random: Random) -> AgentMemory:
    """Return the memory after removing each key and each list item with probability ``FORGET_PROBABILITY``.

    At least one entry is removed if there is any.
    """
    keys = [(part, key) for part in ("short_term", "long_term") for key in getattr(memory, part)]
    if not keys:
        return memory
    removed = random.choice(keys)
    parts: dict[str, dict[str, Any]] = {"short_term": {}, "long_term": {}}
    for part, key in keys:
        value, forgotten = getattr(memory, part)[key], random.random() < FORGET_PROBABILITY
        if (part, key) != removed and not forgotten:
            parts[part][key] = (
                [one for one in value if random.random() >= FORGET_PROBABILITY] if isinstance(value, list) else value
            )
    return replace(memory, short_term=parts["short_term"], long_term=parts["long_term"])


def _merged(old: Mapping[str, Any], new: Any) -> tuple[dict[str, Any], int]:
    merged, cut = dict(old), 0
    for name, value in new.items() if isinstance(new, Mapping) else ():
        if value is None:
            continue
        key = _whole(str(name))
        bounded, lost = _bounded(value, MAX_DEPTH)
        known = key in merged
        rejected = bounded is None or (known and _loses_structure(bounded, merged[key]))
        if rejected or (not known and (len(merged) >= MAX_KEYS or len(key) > MAX_KEY)):
            cut += 1
        else:
            merged[key] = bounded
            cut += lost
    return merged, cut


def _loses_structure(new: Any, old: Any) -> bool:
    """Return whether a scalar would replace a list or table."""
    return isinstance(old, list | dict) and not isinstance(new, type(old))


def _bounded(value: Any, depth: int) -> tuple[Any, int]:
    """Return the value within the size limits and the number of cuts, or None if the value is rejected."""
    if isinstance(value, str):
        return _whole(value[:MAX_TEXT]), int(len(value) > MAX_TEXT)
    if isinstance(value, bool):
        return value, 0
    if isinstance(value, int | float):
        return (value, 0) if abs(value) <= MAX_NUMBER else (None, 1)  # NaN fails the comparison
    if isinstance(value, list) and depth:
        return _bounded_list(value, depth)
    if isinstance(value, Mapping) and depth:
        return _bounded_table(value, depth)
    return None, 1


def _bounded_list(value: list[Any], depth: int) -> tuple[list[Any] | None, int]:
    found = [_bounded(one, depth - 1) for one in value[-MAX_ITEMS:]]
    cut = max(0, len(value) - MAX_ITEMS) + sum(lost for _, lost in found)
    items = [bounded for bounded, _ in found if bounded is not None]
    return (items, cut) if items or not value else (None, cut)


def _bounded_table(value: Mapping[str, Any], depth: int) -> tuple[dict[str, Any] | None, int]:
    table: dict[str, Any] = {}
    cut = 0
    for key, one in value.items():
        bounded, lost = _bounded(one, depth - 1)
        if bounded is None or len(table) >= MAX_KEYS or len(str(key)) > MAX_KEY:
            cut += 1
        else:
            table[_whole(str(key))] = bounded
            cut += lost
    return (table, cut) if table or not value else (None, cut)


def _whole(text: str) -> str:
    """Return the text with replacement characters for half surrogate pairs, which no tokenizer accepts."""
    return _HALF_SURROGATE.sub("\ufffd", text)
