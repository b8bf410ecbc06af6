"""Parse TOML within limits, because Python's parser fails on deep nesting and long integers, or needs all memory."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.errors import NOTHING, Problem, RecipeError

MAX_BYTES = 1_000_000
"""Maximum size of a recipe. The parser needs about a second for it."""
MAX_DEPTH = 32
"""Maximum number of parts of a key, and of lists and tables inside each other. Recipes use four."""
MAX_NAME_BYTES = 255
"""Maximum length of one part of a path on Linux, macOS and Windows."""
MAX_PATH_BYTES = 4_000
"""Maximum length of a path, slightly below that of Linux."""

_INTEGERS = range(-(2**63), 2**63)
_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
# The parser stores every prefix of a dotted key, so a key of 100,000 parts would need 40 GB.
_DEEP_KEY = re.compile(rf"""(?<![\w"'-])(?:{_PART}[ \t]*+\.[ \t]*+){{{MAX_DEPTH}}}""")
_LONG_INTEGER = re.compile(r"\d[\d_]{4000,}")


def parse_toml(text: str, place: str) -> dict[str, Any]:
    """Return the table of a TOML text.

    Args:
        text: at most ``MAX_BYTES``.
        place: the file or option, for problems.

    Raises:
        tomllib.TOMLDecodeError: the text is not TOML.
        RecipeError: a key or value exceeds a limit.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError([too_large(place, len(text))])
    if deep := _DEEP_KEY.search(text):
        raise RecipeError([_too_deep(f"{place}{_line(text, deep)}")])
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise RecipeError([_too_deep(place)]) from None
    except ValueError as error:  # Python converts integers of at most 4,300 digits
        found = _LONG_INTEGER.search(text)
        where, value = (_line(text, found), f"{len(found[0]):,} digits") if found else ("", str(error))
        raise RecipeError([_too_long_integer(f"{place}{where}", value)]) from error


def too_large(place: str, size: int) -> Problem:
    """Return the problem of a recipe of ``size`` bytes."""
    rule, remedy = f"must have at most {MAX_BYTES:,} bytes", "Move rows and lists to files that the recipe names."
    return Problem("recipe.too_large", rule, place, f"{size:,} bytes", remedy)


def unusable_values(value: Any, key: tuple[str, ...] = ()) -> Iterator[Problem]:
    """Yield the problems of values that are nested too deep, of too large integers and of invalid text.

    The place of a problem is a dotted key.
    """
    waiting: list[tuple[tuple[str, ...], Any, int]] = [(key, value, len(key))]
    while waiting:
        path, one, depth = waiting.pop()
        if depth > MAX_DEPTH:
            yield _too_deep(".".join(path[:4]) or "", depth)
        elif isinstance(one, Mapping):
            waiting += [((*path, str(name)), inner, depth + 1) for name, inner in one.items()]
        elif isinstance(one, list | tuple):
            waiting += [(path, inner, depth + 1) for inner in one]
        elif isinstance(one, int) and one not in _INTEGERS:
            yield _too_long_integer(".".join(path), f"an integer of {one.bit_length():,} bits")
        elif isinstance(one, str):
            yield from _invalid_text(one, ".".join(path))


def long_paths(path: str, key: str) -> Iterator[Problem]:
    """Yield a problem if a path or one of its parts is longer than file systems allow."""
    longest = max((len(part.encode()) for part in path.split("/")), default=0)
    for length, most, what in ((longest, MAX_NAME_BYTES, "each part of a path"), (len(path), MAX_PATH_BYTES, "a path")):
        if length > most:
            rule = f"{what} must have at most {most:,} bytes"
            yield Problem("recipe.path_too_long", rule, key, path, f"Shorten it from {length:,} bytes.")


def _invalid_text(text: str, key: str) -> Iterator[Problem]:
    if "\0" in text:
        yield Problem("recipe.text_invalid", "must be text without NUL characters", key, text, "Remove them.")
    try:
        text.encode()
    except UnicodeEncodeError:
        remedy = "Write it in UTF-8."
        yield Problem("recipe.text_invalid", "must be valid Unicode text", key, text, remedy)


def _too_deep(place: str, depth: int | None = None) -> Problem:
    rule = f"must have at most {MAX_DEPTH} lists, tables and parts of a key inside each other"
    value = NOTHING if depth is None else f"at least {depth}"
    return Problem("recipe.nested_too_deep", rule, place, value, "Remove the inner lists or tables.")


def _too_long_integer(place: str, value: str) -> Problem:
    rule = "must be an integer of at most 64 bits, as TOML defines it"
    return Problem("recipe.integer_too_large", rule, place, value, "Lower it.")


def _line(text: str, found: re.Match[str]) -> str:
    """Return the line of a match for a place, or nothing if the text is a value of ``--set``."""
    return f", line {text.count(chr(10), 0, found.start()) + 1}" if "\n" in text else ""
