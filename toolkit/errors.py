"""The exception tree. Every error has a stable code, a place, the value found there, a rule and a remedy.

ToolkitError
├── RecipeError        the recipe: all problems together
├── DataError          rows, columns, splits, leakage
│   ├── DataProblems   several problems, reported together
│   └── RowProblem     one row that cannot be used (counted by code, does not end a run)
│       └── MissingImage  the image of the row is missing
├── ImageError         one image that cannot be read
├── RewardError        a reward that raised, is outside [0, 1], or does not exist
├── ModelError         a model, processor, adapter or chat template that cannot do what the recipe needs
├── TrainingError      a training that cannot learn, or a library that changed a setting of the recipe
├── PlanError          a run that cannot work, found before it started
├── RunError           the run folder: in use, changed, incomplete
├── MissingExtraError  an optional dependency that is not installed
└── Interrupted        a signal. The state was saved

Codes are ``area.description`` in lower case (``data.answer_not_text``). Scripts and tests compare codes, places and
values. The wording may change in any release.
"""

import copyreg
import errno
import logging
import re
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from enum import Enum
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Self

from toolkit.identifiers import hidden_id, shown_cell


class _Nothing(Enum):  # its member stays the same object when a problem comes from another process
    NOTHING = "nothing"


NOTHING: Final = _Nothing.NOTHING
"""Value of a problem that has no value to show."""

CODE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")

MAX_CHARACTERS = 2_000
"""Maximum length of a message."""
MIN_BASE64 = 60
"""Minimum length of a text that is recognised as base64."""

_BASE64 = re.compile(rf"[A-Za-z0-9+/]{{{MIN_BASE64},}}(?:(?:\\r|\r)?(?:\\n|\n)[A-Za-z0-9+/]{{4,}})*={{0,2}}")
_DATA_URL = re.compile(r"(data:[\w.+-]+/[\w.+;=-]*base64,)([A-Za-z0-9+/=_-]+)")

_LOG = logging.getLogger("toolkit")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, as an error, a warning or a line of a report shows it.

    Attributes:
        code: stable identifier, such as ``data.answer_not_text``.
        rule: what must hold, as a sentence without its final full stop, or as a list that ends with a new line.
        place: file and key, row or image that breaks the rule.
        value: value found at the place. ``NOTHING`` if there is none to show.
        remedy: how to fix it, as a sentence.
    """

    code: str
    rule: str
    place: str = ""
    value: object = NOTHING
    remedy: str = ""

    def __str__(self) -> str:
        """Return ``<place>: <rule> (got <value>). <remedy>``, with at most ``MAX_CHARACTERS`` and without base64."""
        got = "" if self.value is NOTHING else f" (got {shorten(self.value)})"
        head = f"{self.place}: " if self.place else ""
        is_list = self.rule.endswith("\n") and not got
        tail = self.remedy if is_list else f". {self.remedy}" if self.remedy else ""
        return _limited(_without_base64(f"{head}{self.rule}{got}{tail}"))

    def to_json(self) -> dict[str, str | None]:
        """Return the fields as JSON values. The value is its shortened text, or None if there is none."""
        value = None if self.value is NOTHING else shorten(self.value)
        return {
            "code": self.code,
            "place": _without_base64(self.place),
            "value": value,
            "rule": _without_base64(self.rule.rstrip("\n")),
            "remedy": self.remedy,
        }


class ToolkitError(Exception):
    """An error that the user can fix. It is printed without a traceback.

    Args:
        code: stable identifier, such as ``data.answer_not_text``.
        rule: what must hold, as a sentence without its final full stop, or as a list that ends with a new line.
        place: file and key, row or image that breaks the rule.
        value: value found at the place, which the message leaves out if it is not given.
        remedy: how to fix it.
    """

    exit_code = 1

    def __init__(self, code: str, rule: str, *, place: object = "", value: object = NOTHING, remedy: str = "") -> None:
        self.problem = Problem(code, rule, str(place), value, remedy)
        super().__init__(str(self.problem))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to rebuild the error in another process without its constructor, which subclasses change."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def at(self, place: str) -> Self:
        """Return the same error with another place, such as the row of an image."""
        other = copy(self)
        other.problem = replace(self.problem, place=place)
        other.args = (str(other.problem),)
        return other

    @property
    def problems(self) -> list[Problem]:
        """Return every problem that the error reports: one, except for a recipe or a plan."""
        return [self.problem]

    @property
    def code(self) -> str:
        """Return the stable identifier."""
        return self.problem.code

    @property
    def rule(self) -> str:
        """Return what must hold."""
        return self.problem.rule

    @property
    def place(self) -> str:
        """Return the file and key, row or image that breaks the rule."""
        return self.problem.place

    @property
    def value(self) -> object:
        """Return the value found at the place. None if there is none to show."""
        return None if self.problem.value is NOTHING else self.problem.value

    @property
    def remedy(self) -> str:
        """Return how to fix the error."""
        return self.problem.remedy


class RecipeError(ToolkitError):
    """A recipe that cannot be run. ``problems`` has every problem that was found."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        self._problems = list(problems)
        count = f"{len(problems)} problem" + ("s" if len(problems) != 1 else "")
        rule = f"the recipe has {count}:\n{list_problems(problems)}"
        super().__init__("recipe.invalid", rule, remedy="Correct the recipe.")

    @property
    def problems(self) -> list[Problem]:
        """Return every problem of the recipe."""
        return list(self._problems)


class DataError(ToolkitError):
    """Rows, columns, splits or leakage that make a dataset unusable."""


class DataProblems(DataError):
    """Several problems of the data, reported together."""

    def __init__(self, code: str, rule: str, problems: list[Problem], *, place: object = "") -> None:
        self._problems = list(problems)
        super().__init__(code, f"{rule}:\n{list_problems(problems)}", place=place)

    @property
    def problems(self) -> list[Problem]:
        """Return every problem of the data."""
        return list(self._problems)


class RowProblem(DataError):
    """One row that cannot be used. Rows are counted by code and ``reason``, which has no value of a row.

    The message has the value as ``shown_cell`` returns it. ``cell`` is the value itself.
    """

    def __init__(self, code: str, rule: str, *, place: object = "", value: object = NOTHING, remedy: str = "") -> None:
        self.cell = value
        shown = value if value is NOTHING else shown_cell(value)
        super().__init__(code, rule, place=place, value=shown, remedy=remedy)

    @property
    def reason(self) -> str:
        """Return the rule that the row breaks."""
        return self.rule


class MissingImage(RowProblem):
    """A row whose image is missing. The result is not cached, because the image may be added later."""


class ImageError(ToolkitError):
    """An image that is missing, unreadable, truncated, too large or outside the data root.

    The message has a hash in place of the path, which can name a patient. ``at`` replaces it by the row of the image.
    """

    def __init__(self, code: str, rule: str, *, place: object = "", value: object = NOTHING, remedy: str = "") -> None:
        self.path = place if isinstance(place, Path) else None
        shown = place if self.path is None else f"image {hidden_id(self.path)}"
        super().__init__(code, rule, place=shown, value=value, remedy=remedy)


class RewardError(ToolkitError):
    """A reward that raised, returned a value outside [0, 1], or does not exist."""


class MetricError(ToolkitError):
    """A custom metric that raised, returned values of another shape, or does not exist."""


class ModelError(ToolkitError):
    """A model, processor, adapter or chat template that cannot do what the recipe needs."""


class TrainingError(ToolkitError):
    """A training that cannot learn, or whose settings a library changed."""


class PlanError(ToolkitError):
    """A run that its plan shows cannot work. ``problems`` has every problem that is certain."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._problems = list(problems)
        remedy = "`toolkit plan RECIPE` prints the whole plan."
        super().__init__("plan.run_cannot_work", f"the run cannot work:\n{list_problems(problems)}", remedy=remedy)

    @property
    def problems(self) -> list[Problem]:
        """Return every certain problem of the plan."""
        return list(self._problems)


class RunError(ToolkitError):
    """A run folder that belongs to another recipe, is in use, or lacks files that a stage needs."""


class MissingExtraError(ToolkitError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            "install.extra_missing",
            f"{purpose} needs the package {package}, which is not installed",
            place=package,
            remedy=install_command(extra),
        )


_OLDER_PILLOW = ("demo", "tracking")
"""Extras with a package (gradio, trackio) that requires another Pillow than the constraints."""


def install_command(extra: str) -> str:
    """Return the remedy that installs an extra."""
    constraints = "<(grep -v '^pillow==' constraints.txt)" if extra in _OLDER_PILLOW else "constraints.txt"
    return f"Install it with: pip install '.[{extra}]' -c {constraints}"


class Interrupted(ToolkitError):
    """A signal ended the run after the state was saved. The same command resumes it."""

    def __init__(self, signal_number: int, saved: str, remedy: str = "Run the same command again to resume.") -> None:
        self.exit_code = 128 + signal_number
        super().__init__("run.interrupted", f"stopped by signal {signal_number}. {saved}", remedy=remedy)


def warn(code: str, rule: str, *, place: object = "", value: object = NOTHING, remedy: str = "") -> None:
    """Log a warning with a stable code. The log record has its ``Problem`` as ``record.problem``.

    Args:
        code: stable identifier, such as ``export.not_verified``.
        rule: what should hold but does not, as a sentence without its final full stop.
        place: file and key, row or stage.
        value: value found at the place.
        remedy: how to fix it.
    """
    problem = Problem(code, rule, str(place), value, remedy)
    _LOG.warning("%s", problem, extra={"problem": problem}, stacklevel=2)


_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_IMPOSSIBLE = frozenset(
    {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EILSEQ}
)
_BAD_PATH = ("Symlink loop", "Could not determine home directory", "embedded null")
"""How the messages of pathlib begin about links that lead to themselves, ``~name`` without a user, and NUL."""


def path_error(error: BaseException) -> RunError | None:
    """Return the error about a path that the operating system rejects. None: the exception has another cause."""
    number = getattr(error, "errno", None)
    place, value = getattr(error, "filename", None) or "", getattr(error, "strerror", None) or str(error)
    if isinstance(error, OSError) and number in _DENIED:
        rule, remedy = "must be a path that you may read and write", "Change its permissions, or use another path."
        return RunError("run.permission_denied", rule, place=place, value=value, remedy=remedy)
    if isinstance(error, FileExistsError) and place and not Path(place).is_dir():
        rule, remedy = "must be a folder, not a file or a link that leads nowhere", "Rename or remove it."
        return RunError("run.path_invalid", rule, place=place, value=value, remedy=remedy)
    bad_text = isinstance(error, RuntimeError | ValueError) and str(error).startswith(_BAD_PATH)
    if bad_text or (isinstance(error, OSError) and number in _IMPOSSIBLE):
        rule, remedy = "must be a path that the operating system accepts", "Correct the path."
        return RunError("run.path_invalid", rule, place=place, value=value, remedy=remedy)
    return None


def list_problems(problems: Iterable[Problem]) -> str:
    """Return one line for each problem, with its code. Of a long list, return the first ones and a count."""
    listed, lines, left = list(problems), list[str](), MAX_CHARACTERS * 3 // 4
    for problem in listed:
        lines.append(_cut(f"  {problem} [{problem.code}]", MAX_CHARACTERS // 4))
        left -= len(lines[-1])
        if left < 0:
            break
    more = len(listed) - len(lines)
    rest = f"  … {more:,} more line{'s' * (more != 1)}\n" if more else ""
    return "".join(f"{line}\n" for line in lines) + rest


def list_places(places: Iterable[str]) -> str:
    """Return the places of rows as one list. A place leaves out the file that the place before it has too.

    >>> list_places(["a/train.json, row 0: 135 tokens", "a/train.json, row 5: 90 tokens", "b.json, row 5, image 1"])
    'a/train.json, row 0: 135 tokens; row 5: 90 tokens; b.json, row 5, image 1'
    """
    listed, before = list[str](), list[str]()
    for place in places:
        *around, last = place.split(", ")
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, around, strict=False)))
        listed.append(", ".join([*around[shared:], last]))
        before = around
    return "; ".join(listed)


def shorten(value: object, limit: int = 120) -> str:
    """Return ``repr(value)``, cut to ``limit`` characters. Bytes and base64 are replaced by their length.

    >>> shorten("yes"), shorten(b"12345"), shorten("data:image/png;base64,iVBORw0KGgo=")
    ("'yes'", '<5 bytes>', "'data:image/png;base64,<12 characters>'")
    """
    text = f"<{len(value):,} bytes>" if isinstance(value, bytes | bytearray) else _without_base64(repr(value))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _without_base64(text: str) -> str:
    """Return the text with the length of each base64 text in its place. Base64 has all kinds of characters."""
    if len(text) < MIN_BASE64 and "base64," not in text:
        return text
    return _BASE64.sub(_length_of_base64, _DATA_URL.sub(_length_of_data_url, text))


def _length_of_data_url(found: re.Match[str]) -> str:
    return f"{found[1]}<{len(found[2]):,} characters>"


def _length_of_base64(found: re.Match[str]) -> str:
    run = found[0]
    is_path = run.count("/") > len(run) / 16
    if is_path or not all(
        any(kind(character) for character in run) for kind in (str.isupper, str.islower, str.isdigit)
    ):
        return run
    return f"<{len(run):,} characters of base64>"


def _limited(text: str) -> str:
    """Return a message with at most ``MAX_CHARACTERS``. A list loses its last lines, but not the line after it."""
    if len(text) <= MAX_CHARACTERS:
        return text
    *lines, last = [_cut(line, MAX_CHARACTERS // 4) for line in text.split("\n")]
    if not lines:
        return _cut(text, MAX_CHARACTERS)
    count = len(lines)
    most = MAX_CHARACTERS - len(last) - 40
    while sum(len(line) + 1 for line in lines) > most:
        lines.pop()
    left_out = count - len(lines)
    more = [f"  … {left_out:,} more line{'s' * (left_out != 1)}"] if left_out else []
    return "\n".join([*lines, *more, last])


def _cut(text: str, limit: int) -> str:
    """Return the text without its middle if it is longer than ``limit``."""
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"
