"""The reference of recipe keys, from the docstrings of the schema."""

import inspect
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from docs.generate.docstrings import markdown
from toolkit.recipe import Recipe
from toolkit.tasks import TASKS

HEAD = """# Recipe keys

Every section and key of a recipe, with type, default and description. [Recipe](recipe.md) explains how a recipe works.
Editors complete and check the keys with [the schema](recipe.md#in-an-editor).
This page is generated from the sections in `toolkit/recipe` by `python -m docs.generate`.
"""
KINDS = {bool: "`true` or `false`", int: "integer", float: "number", str: "text", Path: "path"}
BOUNDS = {
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Gt: ("gt", "above"),
    annotated_types.Le: ("le", "at most"),
    annotated_types.Lt: ("lt", "below"),
}


def text() -> str:
    """Return the text of the page."""
    parts = [HEAD]
    for name, field in Recipe.model_fields.items():
        parts += _sections(f"[{name}]", _model_of(field.annotation))
        if name == "data":
            for task in TASKS.values():
                if task.settings_model is not None:
                    parts += _sections(f"[data.{task.name}]", task.settings_model)
    return "\n".join(parts)


def _sections(title: str, model: type[BaseModel] | None) -> Iterator[str]:
    """Yield a section with the keys that are no sections of their own, then those sections."""
    if model is None:
        return
    inner = {name: found for name, field in model.model_fields.items() if (found := _model_of(field.annotation))}
    keys = [_key(name, field) for name, field in model.model_fields.items() if name not in inner]
    if model.model_config.get("extra") == "allow":
        keys.append("- `NAME` (number): Weight of a reward. A reward that is not named keeps its default.")
    yield "\n".join([f"## {title}\n", markdown(inspect.getdoc(model) or ""), "", *keys, ""])
    for name, found in inner.items():
        table = get_origin(model.model_fields[name].annotation) is dict
        yield from _sections(f"{title[:-1]}.{name}{'.NAME' if table else ''}]", found)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a section, also of an optional one and of a table of them. None for a key with a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _model_of(one))), None)


def _key(name: str, field: FieldInfo) -> str:
    bounds = (
        f"{words} {getattr(one, bound):,}"
        for one in field.metadata
        for kind, (bound, words) in BOUNDS.items()
        if isinstance(one, kind)
    )
    facts = ", ".join([_type(field.annotation), *bounds, _default(field)])
    assert field.description is not None, name
    return f"- `{name}` ({facts}): {markdown(field.description)}"


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    return "not set" if default is None else f"default `{json.dumps(to_jsonable_python(default))}`"


def _type(annotation: Any) -> str:
    """Return the type of a value in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in parts if part is not type(None))
    if origin is Literal:
        return " or ".join(f"`{json.dumps(part)}`" for part in parts)
    if origin is tuple:
        length = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        return f"list of {length}{_plural(_type(parts[0]))}"
    if origin is dict:
        return f"table of {_plural(_type(parts[1]))}"
    return KINDS[annotation]


def _plural(kind: str) -> str:
    return f"{kind}s" if kind in ("integer", "number", "path") else kind
