"""What a message may show of a row: hashes of names, short values of cells, and texts of other libraries.

Ids, paths of images and texts of a row can have names of patients. Messages, logs and results therefore have the number
of the row. Where no number is known, they have a keyed hash of the name, such as ``id-3fa2c1d4``. The key is random,
because anybody could hash a list of names to find out whose a plain hash is. ``identifiers.json`` of a run has the key
and the name of each hash. Only its owner may read the file.
"""

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

FILE = "identifiers.json"
"""File of a run with the names of the hashed ids."""

SAVE_SECONDS = 1.0
"""Seconds between two writes of the file."""

PRIVATE = 0o600
"""Mode of a file with rows or names, which only its owner may read."""

MAX_TEXT, MAX_LETTERS = 80, 24
"""Maximum number of characters and of letters of a text that a message shows."""

MAX_DEPTH = 8
"""Maximum nesting of a value that a message shows."""

MIN_PART, MIN_NUMBER = 3, 5
"""Minimum number of characters of a part of a name that is recognised in another text, and of one with only digits."""

_COMMON_PARTS = frozenset(
    {"png", "jpg", "jpeg", "dcm", "dicom", "tif", "tiff", "nii", "images", "image", "train", "test", "data"}
)
"""Parts of paths that say nothing about a patient."""

_NAME_LIKE = re.compile(r"[^\W\d_a-z][^\W\d_]+(?:\W|_)+[^\W\d_a-z][^\W\d_]+|\w\^\w")
"""Two words with a capital letter, as in a name, and the separator of names in DICOM."""
_NUMBER_LIKE = re.compile(r"(?<![\d.])\d{6}|\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}")
"""Numbers of patients, and dates."""

_QUOTED = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"|`[^`\n]*`")
_PATH = re.compile(r"(?:[A-Za-z]:\\|~?/|\.{1,2}/|\b[\w.-]+/)[^\s'\":,;()\[\]]+")


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, which a terminal executes, and those that reverse the direction of the text after them."""

LINES = "\t\n"
"""Control characters of a text with several lines."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a message shows in place of a value, without quotation marks, such as ``text of 34 characters``."""

    description: str

    def __repr__(self) -> str:
        return self.description

    def __str__(self) -> str:
        return repr(self)


def shown_cell(value: object, private: Iterable[str] = (), depth: int = 0) -> object:
    """Return the value of a cell as a message may show it: itself, or its type and length.

    Numbers and truth values are shown. A text is shown if it has at most ``MAX_TEXT`` characters and ``MAX_LETTERS``
    letters, and no two words with a capital letter, no date and no number of six digits. A list or an object is shown
    if all of its values are.

    Args:
        value: the value of the cell.
        private: parts of names of the row, as ``name_parts`` returns them. A value with one of them is not shown.
        depth: the lists and objects around the value. Beyond ``MAX_DEPTH``, they are not shown.

    >>> shown_cell("E"), shown_cell([1, "no"]), shown_cell("Quentin Zebrowski"), shown_cell("smith", ["smith"])
    ('E', [1, 'no'], text of 17 characters, text of 5 characters)
    """
    if value is None or isinstance(value, bool | Description | bytes):
        return value
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        items = [one for pair in value.items() for one in pair] if isinstance(value, Mapping) else value
        return value if depth < MAX_DEPTH and _are_shown(items, private, depth + 1) else described(value)
    text = str(value)
    if _has_part(text, private) or not (isinstance(value, int | float) or _is_short(text)):
        return described(value)
    return value


def described(value: object) -> Description:
    """Return the type and length of a value that is never shown, such as free text or the path of an image.

    >>> described("Is there an effusion?"), described(["a.png", "b.png"])
    (text of 21 characters, list of 2 values)
    """
    if isinstance(value, Mapping):
        return Description(f"object with {len(value):,} {'key' if len(value) == 1 else 'keys'}")
    if isinstance(value, list | tuple | set | frozenset):
        return Description(f"list of {len(value):,} {'value' if len(value) == 1 else 'values'}")
    if value is None:
        return Description("no value")
    kind = "number" if isinstance(value, int | float) else "text" if isinstance(value, str) else type(value).__name__
    return Description(f"{kind} of {len(str(value)):,} characters")


def shown_numbers(values: object) -> object:
    """Return a list of numbers as it is, such as a box, and the type and length of anything else."""
    listed = values if isinstance(values, list | tuple) else [values]
    is_shown = all(one is None or isinstance(one, int | float) for one in listed)
    return values if is_shown and values is not None else described(values)


def printable(text: str, keep: str = "") -> str:
    """Return a text with escapes in place of control characters and of characters that reverse other text.

    Args:
        text: a text of a file or of its name.
        keep: the control characters to keep, such as a line feed.

    >>> printable("90 \\x1b[31m%")
    '90 \\\\x1b[31m%'
    """
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def masked(text: str) -> str:
    """Return a text with x for each letter and 0 for each digit, which shows its structure and not its content.

    >>> masked('{"name": "Doe, J' + "\\n")
    '{"xxxx": "xxx, x\\n'
    """
    return "".join("0" if one.isnumeric() else "x" if one.isalnum() else one for one in text)


def name_parts(values: Iterable[object]) -> frozenset[str]:
    """Return the parts of identifying values by which other texts with them are recognised, in lower case.

    >>> sorted(name_parts(["Doe_John2/ct.png", 7]))
    ['doe', 'doe_john2/ct.png', 'john', 'john2']
    """
    found = set()
    for value in values:
        whole = str(value).strip().casefold()
        parts = [*re.split(r"[\W_]+", whole), *re.split(r"[\W_\d]+", whole)]
        found |= {part for part in (whole, *parts) if _is_part(part)}
    return frozenset(found)


def _is_part(part: str) -> bool:
    # A short number, such as that of the row, is in many values and is nobody's name.
    return len(part) >= (MIN_NUMBER if part.isdecimal() else MIN_PART) and part not in _COMMON_PARTS


def _are_shown(values: Iterable[object], private: Iterable[str], depth: int) -> bool:
    return all(not isinstance(shown_cell(one, private, depth), Description) for one in values)


def _has_part(text: str, private: Iterable[str]) -> bool:
    text = text.casefold()
    return any(part in text for part in private)


def _is_short(text: str) -> bool:
    if len(text) > MAX_TEXT or sum(map(str.isalpha, text)) > MAX_LETTERS:
        return False
    return not (_NAME_LIKE.search(text) or _NUMBER_LIKE.search(text))


def without_names(text: str) -> str:
    """Return a message of another library without its quoted texts and paths, which can have names of patients.

    >>> without_names("cannot identify image file '/data/Doe_John/x.png'"), without_names("bad header in /Doe/x.nii")
    ("cannot identify image file '…'", 'bad header in …')
    """
    return _PATH.sub("…", _QUOTED.sub("'…'", text))


_DAMAGE = (OSError, ValueError, KeyError, TypeError, RecursionError)
"""What reading a file without a key and names raises."""


@dataclass
class _Names:
    """The key of the hashes, the name of each hash, and the file that has them. None: they are not stored."""

    key: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    known: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    saved: tuple[int, float] = (0, 0.0)
    """Number of names in the file, and when it was written."""
    unsaved: Callable[[OSError], None] = lambda error: None
    """Reports that the file cannot be written. Called once."""
    has_failed: bool = False


_NAMES = _Names()


def hidden_id(name: object) -> str:
    """Return the keyed hash of a name, such as ``id-3fa2c1d4``. In a run, ``FILE`` gets the name."""
    text = str(name)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4, key=_NAMES.key).hexdigest()
    hidden = f"id-{digest}"
    if _NAMES.file is not None and hidden not in _NAMES.known:
        _NAMES.known[hidden] = text
        if time.monotonic() - _NAMES.saved[1] > SAVE_SECONDS:  # a folder of broken images has many at once
            _save(_NAMES.file)
    return hidden


@contextmanager
def identifiers_in(
    file: Path, damaged: Callable[[Exception], None], unsaved: Callable[[OSError], None]
) -> Iterator[None]:
    """Store the names of hashed ids in ``file`` while the block runs. A resumed run keeps its key.

    Args:
        file: the file. It need not exist.
        damaged: called if the file has no key and names. It must rename the file, which is written anew.
        unsaved: called once if the file cannot be written.
    """
    global _NAMES
    if _NAMES.file == file:  # an inner block of the same run has the same key
        yield
        return
    outer, _NAMES = _NAMES, _Names(file=file, unsaved=unsaved)
    try:
        _NAMES.key, _NAMES.known = _read(file)
        _NAMES.saved = (len(_NAMES.known), 0.0)
    except FileNotFoundError:
        pass
    except _DAMAGE as error:
        damaged(error)
    try:
        yield
    finally:
        if len(_NAMES.known) > _NAMES.saved[0]:
            _save(file)
        _NAMES = outer


def _read(file: Path) -> tuple[bytes, dict[str, str]]:
    """Return the key and the names of a file."""
    stored = json.loads(file.read_text(encoding="utf-8", errors="surrogatepass"))
    key, names = bytes.fromhex(stored["key"]), dict(stored["names"])
    if not 0 < len(key) <= hashlib.blake2b.MAX_KEY_SIZE or not all(isinstance(name, str) for name in names.values()):
        raise ValueError("it must have a key and names")
    return key, names


def _save(file: Path) -> None:
    """Write the names atomically. Nobody else can read the file at any time."""
    _NAMES.saved = (len(_NAMES.known), time.monotonic())
    with suppress(*_DAMAGE):  # another process of the run can have added names
        _NAMES.known = {**_read(file)[1], **_NAMES.known}
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    content = {"key": _NAMES.key.hex(), "names": _NAMES.known}
    try:
        with os.fdopen(open_private(temporary), "w", encoding="utf-8", errors="surrogatepass") as stream:
            json.dump(content, stream, indent=2, ensure_ascii=False)
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not _NAMES.has_failed:
            _NAMES.has_failed = True
            _NAMES.unsaved(error)


def open_private(file: Path) -> int:
    """Open a new file for writing that only its owner may read, and return its descriptor."""
    return private_opener(str(file), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def private_opener(file: str, flags: int) -> int:
    """Open a file that only its owner may read, as ``opener`` of ``open``."""
    descriptor = os.open(file, flags, PRIVATE)
    with suppress(OSError, AttributeError):  # a file of an earlier version; Windows has no modes
        os.fchmod(descriptor, PRIVATE)
    return descriptor
