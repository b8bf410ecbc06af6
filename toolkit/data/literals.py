"""Lists and tables that a text is: JSON, and what Python and NumPy print, as pandas writes them into a CSV.

Python joins adjacent texts, so NumPy's ``['a' 'b']`` would be read as ``['ab']``. Adjacent texts are therefore read one
by one, or not at all.
"""

import ast
import json
import re
import warnings
from typing import Any

MOST_CHARACTERS = 1 << 16
"""Maximum length of a text that is read as a Python literal."""

_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_ADJACENT = re.compile(r'"\s*"')
_TEXT_ARRAY = re.compile(r'\[\s*"(?:\s+")+\s*\]')
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_NUMBER_ARRAY = re.compile(rf"\[\s*{_NUMBER}(?:\s+{_NUMBER})+\s*\]", re.IGNORECASE)

_WORD = rf"nan|None|True|False|{_NUMBER}"
_PRINTED = re.compile(
    r"""\[\s*(?:[bru]?['"].*|\{\s*'.*)\]"""
    rf"""|\[\s*(?:(?:{_WORD})[\s,]*)*\]"""
    r"""|\{\s*(?:['"].*)?\}"""
    r"""|b(?:'.*'|".*")"""
    r"""|(?:array|tensor)\(.*\)"""
    r"""|<.* at 0x[0-9A-Fa-f]+>""",
    re.DOTALL,
)
"""Texts that Python, NumPy and PyTorch print for lists, tables, bytes, arrays and objects."""


def read_literal(text: str) -> list[Any] | dict[str, Any] | None:
    """Return the list or table that a text is, or None if the text is another one or can be read in two ways.

    >>> read_literal('["a"]'), read_literal("['a', 'b']"), read_literal("['a' 'b']"), read_literal("{'x': None}")
    (['a'], ['a', 'b'], ['a', 'b'], {'x': None})
    >>> read_literal("[see report]"), read_literal("['it''s']"), read_literal("[1. 2.5]")
    (None, None, [1.0, 2.5])
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _printed(text) if len(text) <= MOST_CHARACTERS else None
    return value if isinstance(value, list | dict) else None


def is_printed_value(text: str) -> bool:
    """Return whether a text is what Python prints for a list, table, bytes, array or object. Other JSON is text.

    >>> is_printed_value("['yes']"), is_printed_value("[]"), is_printed_value("b'yes'"), is_printed_value("[1, nan]")
    (True, True, True, True)
    >>> is_printed_value('["yes"]'), is_printed_value("[0.1, 0.2]"), is_printed_value("[Findings] None. [End]")
    (False, False, False)
    """
    if _PRINTED.fullmatch(text) is None:
        return False
    try:
        return not json.loads(text)
    except (ValueError, RecursionError):
        return True


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
            return ast.literal_eval(_WithoutNan().visit(ast.parse(text, mode="eval")))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


class _WithoutNan(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.copy_location(ast.Constant(None), node) if node.id == "nan" else node


def _plain(value: Any) -> Any:
    """Return the value with tuples as lists, or None if a part of it is not a JSON value."""
    try:
        return json.loads(json.dumps(value))
    except (ValueError, TypeError, RecursionError):
        return None
