"""Lists and objects in a text: JSON, repaired if needed, and what Python and NumPy print, as pandas writes it to a CSV.

Python joins adjacent texts, so NumPy's ``['a' 'b']`` would be read as ``['ab']``. Adjacent texts are therefore read one
by one, or not at all.
"""

import ast
import json
import re
import warnings
from functools import lru_cache
from typing import Any

import json_repair

from toolkit.data.json_stream import KeyRepeated, checked_object

MAX_BRACKETS = 128
"""Maximum number of opening brackets in a text that is repaired. An answer of the task steps has about ten."""

MAX_CHARACTERS = 1 << 16
"""Maximum length of a text that is read as a Python literal."""

_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_ADJACENT = re.compile(r'"\s*"')
_TEXT_ARRAY = re.compile(r'\[\s*"(?:\s+")+\s*\]')
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_NUMBER_ARRAY = re.compile(rf"\[\s*{_NUMBER}(?:\s+{_NUMBER})+\s*\]", re.IGNORECASE)

_WORD = rf"nan|None|True|False|{_NUMBER}"
_CALL = (
    r"(?:(?:np|numpy|pd|pandas|torch|datetime|decimal|collections|pathlib)\.[\w.]+"
    r"|array|tensor|Timestamp|Timedelta|Decimal|Fraction|UUID|OrderedDict|defaultdict|Counter|dict_\w+|\w+Path)\("
)
_PRINTED = re.compile(
    rf"""\[\s*(?:[bru]?['"].*|\{{\s*'.*|{_CALL}.*)\]"""
    rf"""|\[\s*(?:(?:{_WORD})[\s,]*)*\]"""
    r"""|\{\s*(?:['"].*)?\}"""
    r"""|b(?:'.*'|".*")"""
    rf"""|{_CALL}.*\)"""
    r"""|<.* at 0x[0-9A-Fa-f]+>|<PIL\..*>""",
    re.DOTALL,
)
"""Texts that Python, NumPy, pandas and PyTorch print for lists, tables, bytes, arrays and objects."""


def read_literal(text: str) -> list[Any] | dict[str, Any] | None:
    """Return the list or table that a text is, or None if the text is another one or can be read in two ways.

    >>> read_literal('["a"]'), read_literal("['a', 'b']"), read_literal("['a' 'b']"), read_literal("{'x': None}")
    (['a'], ['a', 'b'], ['a', 'b'], {'x': None})
    >>> read_literal("[see report]"), read_literal("['it''s']"), read_literal("[1. 2.5]")
    (None, None, [1.0, 2.5])
    >>> read_literal("{'x': 1, 'x': 2}") is None
    True
    """
    try:
        value = json.loads(text, object_pairs_hook=checked_object)
    except KeyRepeated:
        return None
    except (ValueError, RecursionError):
        value = _printed(text) if len(text) <= MAX_CHARACTERS else None
    return value if isinstance(value, list | dict) else None


def is_printed_value(text: str) -> bool:
    """Return whether a text is what Python prints for a list, table, bytes, array or object. Other JSON is text.

    >>> is_printed_value("['yes']"), is_printed_value("[]"), is_printed_value("b'yes'"), is_printed_value("[1, nan]")
    (True, True, True, True)
    >>> is_printed_value("('yes',)"), is_printed_value("np.float64(0.5)"), is_printed_value("(the 'left' lung)")
    (True, True, False)
    >>> is_printed_value('["yes"]'), is_printed_value("[0.1, 0.2]"), is_printed_value("[Findings] None. [End]")
    (False, False, False)
    """
    if text.startswith("("):  # text in brackets is frequent, so only a tuple with a text is one
        has_text = ("'" in text or '"' in text) and len(text) <= MAX_CHARACTERS
        return has_text and isinstance(_evaluate(text), tuple)
    if _PRINTED.fullmatch(text) is None:
        return False
    try:
        return not json.loads(text)
    except (ValueError, RecursionError):
        return True


def decoded(value: Any) -> Any:
    """Return a list or table from its text in a CSV: JSON, or as Python or NumPy print it. Other values stay as is.

    >>> decoded("[1, 2]"), decoded("['a' 'b']"), decoded("[see report]")
    ([1, 2], ['a', 'b'], '[see report]')
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        found = read_literal(value)
        return value if found is None else found
    return value


@lru_cache(maxsize=1 << 10)
def parse_or_repair_json(text: str) -> tuple[Any, bool]:
    """Return a JSON value, and whether the text had to be repaired.

    Repairs cover single quotes, line breaks, trailing commas and code fences.

    The result is cached and must not be modified. A text without an object or list is not JSON, even after repair.

    Raises:
        ValueError: The text cannot be parsed.
    """
    try:
        return json.loads(text), False
    except (ValueError, RecursionError):
        pass
    value = repair_json(text)
    if not isinstance(value, dict | list):
        raise ValueError("no JSON")
    return value, True


def repair_json(text: str) -> Any:
    """Return the most likely value of an invalid JSON text (json-repair).

    Raises:
        ValueError: No value was found, or the text has more than ``MAX_BRACKETS`` opening brackets. The time of a
            repair grows with their square.
    """
    if text.count("{") + text.count("[") > MAX_BRACKETS:
        raise ValueError("too many brackets")
    try:
        return json_repair.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _printed(text: str) -> Any:
    """Return the value of what Python or NumPy printed, or None."""
    text = text.strip()
    bare = _QUOTED.sub('"', text)
    if _TEXT_ARRAY.fullmatch(bare):
        return [_evaluate(item) for item in _QUOTED.findall(text)]
    if _NUMBER_ARRAY.fullmatch(text):
        numbers = text[1:-1].split()
        return [float(number) if re.search(r"[.eE]", number) else int(number) for number in numbers]
    return None if _ADJACENT.search(bare) else _plain(_evaluate(text))


def _evaluate(text: str) -> Any:
    """Return the value of a Python literal, in which ``nan`` is a missing value, or None."""
    try:
        with warnings.catch_warnings():  # an unknown escape sequence, such as '\\d', is only a warning
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.literal_eval(_Checked().visit(ast.parse(text, mode="eval")))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


class _Checked(ast.NodeTransformer):
    """Replaces ``nan`` by None, and rejects a table that has a key twice with different values."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.copy_location(ast.Constant(None), node) if node.id == "nan" else node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        values: dict[str, str] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            shown = ast.dump(value)
            if key is not None and values.setdefault(ast.dump(key), shown) != shown:
                raise ValueError("a key is repeated")
        return self.generic_visit(node)


def _plain(value: Any) -> Any:
    """Return the value with tuples as lists, or None if a part of it is not a JSON value."""
    try:
        return json.loads(json.dumps(value))
    except (ValueError, TypeError, RecursionError):
        return None
