"""The signatures and arguments of the Python API, from ``toolkit.__all__``."""

import inspect
import re
from typing import Any

import toolkit
from docs.generate.docstrings import parse

_TITLES = {"Args": "Arguments", "Returns": "Returns", "Raises": "Raises"}


def function_lists() -> str:
    """Return a section for each function."""
    return "\n\n".join(_section(name, getattr(toolkit, name)) for name in toolkit.__all__)


def _section(name: str, function: Any) -> str:
    found = parse(inspect.getdoc(function) or "")
    parts = [f"### toolkit.{name}", f"```python\n{_signature(name, function)}\n```"]
    parts += filter(None, (found.summary, found.details))
    for section, title in _TITLES.items():
        if entries := found.sections.get(section):
            lines = [f"- `{key}`: {text}" if key else f"- {text}" for key, text in entries.items()]
            parts.append("\n".join([f"**{title}**\n", *lines]))
    return "\n\n".join(parts)


def _signature(name: str, function: Any) -> str:
    signature = str(inspect.signature(function)).replace("'", "")
    shown = re.sub(r"\b(?:collections\.abc|pathlib|typing)\.(?:_local\.)?", "", signature)
    inner, arrow, result = shown[1:].rpartition(") -> ")
    arguments = re.split(r", (?=\w+: |\*)", inner)
    return f"toolkit.{name}(\n" + "".join(f"    {one},\n" for one in arguments) + f"){arrow[1:]}{result}"
