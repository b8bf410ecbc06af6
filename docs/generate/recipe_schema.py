"""The JSON Schema of a recipe, for editors: draft 7, which taplo and the editors that use it know."""

import json
from typing import Any

from docs.generate.docstrings import markdown
from toolkit.recipe import recipe_model
from toolkit.tasks import TASKS

DRAFT = "http://json-schema.org/draft-07/schema#"


def schema() -> dict[str, Any]:
    """Return the schema of recipes with the package's tasks."""
    model = recipe_model(TASKS)
    found: dict[str, Any] = _draft_7(model.model_json_schema())
    return {"$schema": DRAFT, **found, "title": "toolkit recipe"}


def schema_text() -> str:
    """Return the content of the file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _draft_7(node: Any, *, names: bool = False) -> Any:
    """Return a part of pydantic's schema in draft 7.

    Args:
        node: The part.
        names: Whether its keys are names of properties or definitions, which stay as they are.
    """
    if isinstance(node, list):
        return [_draft_7(one) for one in node]
    if isinstance(node, str):
        return node.replace("#/$defs/", "#/definitions/")
    if not isinstance(node, dict):
        return node
    if names:
        return {name: _draft_7(one) for name, one in node.items()}
    new = {"$defs": "definitions", "prefixItems": "items"}
    found = {new.get(key, key): _draft_7(one, names=key in ("$defs", "properties")) for key, one in node.items()}
    if not isinstance(node.get("default", ""), str):
        found["default"] = node["default"]
    if isinstance(found.get("description"), str):
        found["description"] = markdown(found["description"])
    found.pop("title", None)  # made from the name of the key
    return found
