"""The fields of results.json, from the dataclasses that are written to it."""

import ast
import dataclasses
import inspect
import re
import textwrap
import types
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docs.generate.docstrings import markdown, parse
from toolkit.imagegen.results import ImagegenResult
from toolkit.pipeline.run_results import RunResults

KINDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    Any: "any value",
    type(None): "null",
}
ROOTS = (RunResults, ImagegenResult)
"""The content of results.json of a run of a vision-language model, and of an image generator."""


def results_lists() -> str:
    """Return a section for each dataclass, in the order in which the fields name them."""
    return "\n\n".join(_section(kind) for kind in _reachable())


def undescribed() -> dict[str, list[str]]:
    """Return dataclass -> its fields without a description of their own."""
    return {
        kind.__name__: left
        for kind in _reachable()
        if (left := [one.name for one in dataclasses.fields(kind) if not _described(kind).get(one.name)])
    }


def _reachable() -> list[type]:
    found: list[type] = []
    queue = list[Any](ROOTS)
    while queue:
        kind = queue.pop(0)
        if kind not in found:
            found.append(kind)
            hints = get_type_hints(kind)
            queue += [inner for one in dataclasses.fields(kind) for inner in _dataclasses(hints[one.name])]
    return found


def _dataclasses(annotation: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        yield annotation
    for one in get_args(annotation):
        yield from _dataclasses(one)


def _section(kind: type) -> str:
    found = parse(inspect.getdoc(kind) or "")
    hints, described = get_type_hints(kind), _described(kind)
    lines = [
        f"- `{one.name}` ({_type(hints[one.name])}){_sentence(described.get(one.name, ''))}"
        for one in dataclasses.fields(kind)
    ]
    return "\n".join([f"### {_title(kind)}\n", " ".join(filter(None, (found.summary, found.details))), "", *lines])


def _title(kind: Any) -> str:
    """Return the name of a dataclass. Some names of image generation are also those of vision-language models."""
    name: str = kind.__name__
    return f"{name} (image generation)" if kind.__module__.startswith("toolkit.imagegen.") else name


def _described(kind: type) -> Mapping[str, str]:
    """Return field -> description, also of base classes."""
    bases = [one for one in reversed(kind.__mro__) if dataclasses.is_dataclass(one)]
    return {name: text for one in bases for name, text in (_texts_below(one) | _attributes(one)).items()}


def _attributes(kind: type) -> dict[str, str]:
    """Return the entries of the section Attributes. An entry can describe several fields: ``low, high: ...``."""
    entries = parse(inspect.cleandoc(kind.__doc__ or "")).sections.get("Attributes", {})
    return {name: text for names, text in entries.items() for name in names.split(", ")}


def _texts_below(kind: type) -> dict[str, str]:
    """Return the texts below the fields in the source."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: markdown(inspect.cleandoc(text.value.value)).removesuffix(".") + "."
        for field, text in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _sentence(text: str) -> str:
    """Return a description after the type. Some names need none."""
    return f": {text[0].upper()}{text[1:]}" if text else ""


def _type(annotation: Any) -> str:
    """Return the type of a JSON value in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in parts)
    if origin is Literal:
        return " or ".join(f'`"{part}"`' for part in parts)
    if origin in (tuple, list) or getattr(origin, "__name__", "") == "Sequence":
        return f"list of {_type(parts[0])}"
    if origin is not None and len(parts) == 2:
        return f"object of {_type(parts[1])}"
    if dataclasses.is_dataclass(annotation):
        return f"[{_title(annotation)}](#{re.sub('[()]', '', _title(annotation)).lower().replace(' ', '-')})"
    return KINDS[annotation]
