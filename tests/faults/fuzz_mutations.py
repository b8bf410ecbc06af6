"""Odd values and mutations of bytes, JSON and tables, drawn from one `random.Random`."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

TEXTS = (
    "",
    " ",
    "\t\n",
    "\0",
    "a\0b",
    "\ud800",
    "e\u0301",
    "\u202eabc",
    "\ufeffyes",
    "null",
    "None",
    "nan",
    "NaN",
    "inf",
    "true",
    "[]",
    "{}",
    "['yes']",
    '["yes"]',
    "{'a': 1}",
    '{"a": 1}',
    "(1, 2)",
    "[1, 2, 3",
    "1,2,3,4",
    "1e999",
    "-1",
    "0x10",
    "A",
    "A. B. C.",
    "A, B",
    "<image>",
    "<image><image>",
    "<start_of_turn>model\n",
    "<bos><eos><pad>",
    "{{ 7 * 7 }}",
    "%s%n",
    "../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "C:\\x.png",
    "\\\\host\\x.png",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x.png",
    "data:image/png;base64,AAAA",
    "data:image/png;base64,iVBORw0KGgo=",
    "x.png#3",
    "x.png#axial=-1",
    "~",
    "$HOME",
    "yes\r\nno",
    'a","b',
    "'",
    "\x1b[31m",
)
NUMBERS = (0, -1, 1, 2, 1.5, -0.0, 2**31, 2**63, -(2**63), 2**64, 10**30, 1e308, 1e-320, 1e300, -1e300)


def odd_value(random: Random) -> Any:
    """Return a value that a cell of this place seldom has. It can be written as JSON."""
    kind = random.randrange(8)
    if kind < 3:
        return random.choice(TEXTS)
    if kind == 3:
        return random.choice((*NUMBERS, math.nan, math.inf, -math.inf))
    if kind == 4:
        return random.choice((None, True, False))
    if kind == 5:
        return random.choice((long_text, deep_list, deep_object))(random)
    one = odd_value(random)
    return random.choice(([], {}, [one], [one, one], {"en": one}, [[one]], {"": one}, {"bytes": one, "path": one}))


def long_text(random: Random) -> str:
    """Return a text of up to a million characters."""
    return random.choice(("a", "a ", "ä", "\n", "[", "<bbox>")) * random.choice((300, 5_000, 100_000, 1_000_000))


def deep_list(random: Random) -> Any:
    """Return a list in a list, up to 900 deep. That is near the limit of Python's own JSON."""
    found: Any = []
    for _ in range(random.choice((5, 70, 300, 900))):
        found = [found]
    return found


def deep_object(random: Random) -> Any:
    """Return an object in an object."""
    found: Any = {}
    for _ in range(random.choice((5, 70, 300, 900))):
        found = {"a": found}
    return found


def mutate_bytes(random: Random, content: bytes) -> bytes:
    """Return other bytes: flipped, cut, inserted, repeated, moved, emptied."""
    found = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        _mutate_once(random, found)
    return bytes(found)


def _mutate_once(random: Random, found: bytearray) -> None:
    start = random.randrange(len(found) + 1)
    # Small pieces mostly: a file that lost its first half is rejected by its first bytes.
    end = min(len(found), start + random.choice((1, 1, 2, 4, 16, 64, 1000, len(found))))
    kind = random.randrange(9)
    if kind == 0:
        del found[start:]
    elif kind == 1:
        del found[start:end]
    elif kind == 2:
        found[start:start] = random.randbytes(random.choice((1, 3, 100)))
    elif kind == 3:
        found[start:start] = found[start:end] * random.choice((1, 3))
    elif kind == 4:
        found[start:end] = bytes(end - start)
    elif kind == 5:
        found[start:end] = b"\xff" * (end - start)
    elif kind == 6:
        found.extend(random.choice((b"\0", b"junk", b"\n", b"]}", random.randbytes(50))))
    elif found:
        for _ in range(random.choice((1, 2, 8))):
            found[random.randrange(len(found))] ^= 1 << random.randrange(8)


def mutate_json(random: Random, value: Any) -> Any:
    """Return a copy of the value with one odd member, or without one, or with one twice."""
    found = copy.deepcopy(value)
    places = list(places_in(found))
    if not places:
        return odd_value(random)
    holder, key = random.choice(places)
    kind = random.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[misspelled(random, key)] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder.insert(random.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif kind == 3 and isinstance(holder, dict):
        holder[random.choice(("x", "", "image", "id", "\ud800"))] = odd_value(random)
    else:
        holder[key] = odd_value(random)
    return found


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each holder and key of a value in lists and objects."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places_in(value[key])


def misspelled(random: Random, word: str) -> str:
    """Return the word with another letter, without one, with one twice, or in capitals."""
    if not word:
        return "x"
    at = random.randrange(len(word))
    others: tuple[Callable[[], str], ...] = (
        lambda: word[:at] + word[at + 1 :],
        lambda: word[:at] + word[at] * 2 + word[at + 1 :],
        lambda: word[:at] + "x" + word[at + 1 :],
        lambda: word.upper(),
        lambda: word + "s",
        lambda: word.replace("_", "-"),
    )
    return random.choice(others)()


def as_json(value: Any) -> bytes:
    """Return JSON, in which a lone surrogate is escaped and NaN is written as Python writes it."""
    return json.dumps(value).encode()
