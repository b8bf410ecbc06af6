"""Cell values of a row as text, numbers, lists, context and group."""

import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from toolkit.data.json_stream import Row
from toolkit.data.literals import decoded, is_printed_value
from toolkit.data.task import RowOrigin
from toolkit.errors import RowProblem
from toolkit.identifiers import described

_HALF = re.compile("[\ud800-\udfff]")
_WHOLE = re.compile(r"-?\d+\.0+")
_INVISIBLE = re.compile("\\A[\\s\u200b\u2060\ufeff]+|[\\s\u200b\u2060\ufeff]+\\Z")
"""Blanks and characters without width around a text, such as the byte order mark of a table."""

_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")

_ENDS = (")", "]", "}", ">", "'", '"')
"""Ends of texts that can be printed values."""

TRUTH = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
"""Texts that pandas (True), Excel and R (TRUE), and Arrow (true) write for truth values."""

_MISSING = frozenset(
    {"nan", "nat", "<na>", "#n/a", "#value!", "#ref!", "#div/0!", "#name?", "#num!", "#null!", "#spill!"}
)
"""Texts, in lower case, that pandas prints for missing values, and Excel for errors."""
_MAX_MISSING = max(map(len, _MISSING))

_NO_GROUP = frozenset({"none", "null", "na", "n/a"})
"""Names, in lower case, of a missing group."""

NOT_TEXT = "data.value_not_text"
"""Code of a value that is a list, an object, bytes or an infinite number."""

NO_QUESTION = ("data.question_missing", "the row must have a question")
NO_ANSWER = ("data.answer_missing", "the row must have an answer")
NO_IMAGE = ("data.image_path_missing", "the row must have an image path")
IMAGE_OUTSIDE = ("data.image_outside_root", "an image path must not leave the folder data.image_root")
"""Codes and rules of problems that are common to several tasks."""


def text_of(value: Any) -> str:
    """Return a text, number or truth value as text without surrounding blanks. Missing values are empty.

    Missing are None, NaN, the texts that pandas prints for them, and errors of Excel. JSON in a text is text.

    >>> text_of(" yes "), text_of(3), text_of(2.5), text_of(None), text_of(float("nan")), text_of("#N/A")
    ('yes', '3', '2.5', '', '', '')

    Raises:
        RowProblem: The value is a list, an object, bytes or an infinite number, or a text that Python printed for one
            (``['yes']`` in a CSV), or a text with half of a surrogate pair or a control character.
    """
    if isinstance(value, str):
        if not value.isprintable():
            check_unicode(value)
        text = without_blanks(value)
        if text[-1:] in _ENDS and is_printed_value(text):
            raise _not_text(value)
        return "" if len(text) <= _MAX_MISSING and text.lower() in _MISSING else text
    if value is None or value != value:  # only NaN differs from itself
        return ""
    if not isinstance(value, int | float) or abs(value) == math.inf:  # math.isinf fails for integers beyond floats
        raise _not_text(value)
    return str(value)


def without_blanks(text: str) -> str:
    """Return a text without surrounding blanks and characters without width."""
    return text.strip() if text.isascii() else _INVISIBLE.sub("", text)


def texts_of(value: Any) -> tuple[str, ...]:
    """Return the texts of a list, or of a CSV cell with a list as JSON, Python or NumPy print it. One text is a list.

    Missing values in a list are left out.

    >>> texts_of(["a ", 2, None]), texts_of("['a', 'b']"), texts_of('["a"]'), texts_of("a, b"), texts_of(None)
    (('a', '2'), ('a', 'b'), ('a',), ('a, b',), ())

    Raises:
        RowProblem: The value, or a value of the list, is not a text or number.
    """
    found = decoded(value)
    values = found if isinstance(found, list | tuple) else [value]
    return tuple(text for one in values if (text := text_of(one)))


def check_unicode(text: str) -> None:
    """Raise a RowProblem if a text has half of a surrogate pair, or a control character such as NUL."""
    if not text.isascii() and _HALF.search(text):
        rule = "a text must not have half of a surrogate pair, which is not a character"
        raise RowProblem("data.text_not_unicode", rule, value=described(text))
    if found := _CONTROL.search(text):
        rule, remedy = "a text must not have a control character", "Remove it, or export the rows again."
        value = f"{found[0]!a} at {found.start() + 1:,} of {len(text):,}"
        raise RowProblem("data.control_character", rule, value=value, remedy=remedy)


def is_missing(value: Any) -> bool:
    """Return whether a value of any type is missing: None, NaN, a blank text, or a text that is written for these.

    >>> is_missing(None), is_missing(" "), is_missing("nan"), is_missing([]), is_missing("None")
    (True, True, True, False, False)
    """
    if isinstance(value, str):
        text = value.strip()
        return len(text) <= _MAX_MISSING and (not text or text.lower() in _MISSING)
    return value is None or value != value


def name_of(value: Any) -> str:
    """Return an identifier as text. Tables convert integers to floats if one is missing, so 3.0 becomes 3.

    >>> name_of(3), name_of(3.0), name_of("3.0"), name_of("P3")
    ('3', '3', '3.0', 'P3')
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else text_of(value)


def number_of(value: Any) -> str:
    """Return ``name_of`` for numeric identifiers: an integer text with a decimal point loses it.

    >>> number_of("3.0"), number_of("3.10"), number_of("task_3")
    ('3', '3.10', 'task_3')
    """
    name = name_of(value)
    return name.partition(".")[0] if _WHOLE.fullmatch(name) else name


def fold(name: str) -> str:
    """Return a column or key name without case, blanks and underscores.

    >>> fold("Short Term"), fold("short_term")
    ('shortterm', 'shortterm')
    """
    return re.sub(r"[\W_]+", "", name).casefold()


def natural_order(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a key that sorts names with their numbers by value.

    >>> sorted(["10", "2", "grade 10", "grade 2", "0"], key=natural_order)
    ['0', '2', '10', 'grade 2', 'grade 10']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return (*((0, int(part)) if part[0] in "0123456789" else (1, part) for part in parts), (1, name))


def cell(row: Row, origin: RowOrigin, field: str) -> Any:
    """Return the value of one of the task's fields, or None if the source has no such column or the row no value."""
    column = origin.column.get(field)
    return None if column is None else row.get(column)  # "" is the column of a table with an index of pandas


def with_whole_numbers(row: Row, columns: Sequence[str]) -> Row:
    """Return the row with whole numbers in these columns, without a decimal point, and with truth values.

    >>> with_whole_numbers({"count": 2.0, "answer": "3.0", "sick": "True", "other": 2.0}, ["count", "answer", "sick"])
    {'count': 2, 'answer': '3', 'sick': True, 'other': 2.0}
    """
    return {**row, **{column: _whole(row[column]) for column in columns if column in row}} if columns else row


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip() in TRUTH:
        return TRUTH[value.strip()]
    return value.strip().partition(".")[0] if isinstance(value, str) and is_whole_text(value) else value


def is_whole_text(text: str) -> bool:
    """Return whether a text is a whole number with a decimal point, such as ``2.0``."""
    return _WHOLE.fullmatch(text.strip()) is not None


def _not_text(value: Any) -> RowProblem:
    rule = "the value must be a text or a number, not a list, an object, bytes or infinite"
    remedy = "Store one text in each cell, or name another column in data.columns."
    return RowProblem(NOT_TEXT, rule, value=value, remedy=remedy)


def group_name(value: Any) -> str:
    """Return the name of a group, or an empty text if the value is missing. A number has no decimal point.

    >>> group_name(3.0), group_name("3.0"), group_name("P3"), group_name("None"), group_name("n/a")
    ('3', '3', 'P3', '', '')

    Raises:
        RowProblem: The value is a list or an object. The problem does not have the value, which can name a patient.
    """
    try:
        return _group_of_text(value) if isinstance(value, str) else number_of(value)
    except RowProblem as problem:
        raise RowProblem(problem.code, problem.rule, remedy=problem.remedy) from None


@lru_cache(maxsize=1 << 12)
def _group_of_text(text: str) -> str:
    """Return a cached name, because rows of one patient are often adjacent."""
    name = number_of(text)
    return "" if name.lower() in _NO_GROUP else name


def extra_fields(row: Row, origin: RowOrigin) -> Iterator[tuple[str, str]]:
    """Yield the non-empty columns for the prompt and for group-by results."""
    for column in (*origin.context, *origin.by):
        if text := text_of(row.get(column)):
            yield column, text
