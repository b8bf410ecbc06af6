"""Render model cards (README.md in the Hub's format) from Jinja templates, with every value escaped for Markdown."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

MARKS = "\\`*|<>[]"
"""Characters with a meaning in Markdown or HTML."""


def render_card(template: Path, header: ModelCardData, **values: object) -> ModelCard:
    """Return the model card with a header and the rendered template as its body.

    ``ModelCard.from_template`` prints a missing value as nothing and escapes no value. Here a missing value is an
    error, and a printed value is escaped with ``escape`` unless it is ``Markup``. Templates may use the filters
    ``code``, ``fenced`` and ``count``, and the function ``table``.

    Args:
        template: the Jinja template of the body.
        header: the YAML header.
        values: the variables of the template.

    Raises:
        jinja2.UndefinedError: the template uses a value that is missing.
    """
    # ``finalize`` escapes for Markdown. ``autoescape`` would escape for HTML, which leaves Markup unchanged, and keeps
    # the output of macros from being escaped twice.
    environment = Environment(
        autoescape=True, finalize=escape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"code": code, "fenced": fenced, "count": count}
    environment.globals["table"] = table
    body = environment.from_string(template.read_text(encoding="utf-8")).render(values)
    return ModelCard(f"---\n{header.to_yaml()}\n---\n\n{body.strip()}\n")


def escape(value: object) -> Markup:
    """Return a value as text on one line, with ``MARKS`` escaped. Markup is returned unchanged."""
    if isinstance(value, Markup):
        return value
    text = str(value)  # raises an error if the value is undefined
    for mark in MARKS:
        text = text.replace(mark, f"\\{mark}")
    return Markup(" ".join(text.split()))


def code(text: str) -> Markup:
    """Return a text as inline code. Its delimiters are longer than any backticks in it."""
    line, fence = " ".join(text.split()), "`" * (_longest_backticks(text) + 1)
    space = " " if "`" in line else ""
    return Markup(f"{fence}{space}{line}{space}{fence}")


def fenced(text: str, language: str) -> Markup:
    """Return a text as a code block. Its fence is longer than any backticks in it."""
    fence = "`" * max(3, _longest_backticks(text) + 1)
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def count(number: int) -> Markup:
    """Return a number with separators of thousands."""
    return Markup(f"{number:,}")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """Return a Markdown table with escaped cells. The first column is text, the others are figures."""
    rule = "| --- |" + " ---: |" * (len(head) - 1)
    return Markup("\n".join([_line(head), rule, *map(_line, rows)]))


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(escape(cell) for cell in cells)} |"


def _longest_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
