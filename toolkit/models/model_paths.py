"""What a recipe's model is called and where it lies, told without loading anything."""

import re
from pathlib import PureWindowsPath

from toolkit import tiny
from toolkit.models.llamacpp import formats_of
from toolkit.recipe import Model, Recipe

ELSEWHERE = re.compile(r"^(?:~|\.{1,2})?[/\\]|^[A-Za-z]:[/\\]")
"""How a path begins, which no name on the Hub does."""


def model_source(model: Model) -> str:
    """The folder or Hub name that ``model.name`` stands for."""
    return str(tiny.FOLDER) if model.name == "tiny" else model.name


def public_name(source: str) -> str:
    """What others may call a model or file: a Hub's name stays, the shipped model is ``tiny``, a path is its last part.

    The weights of a run go by the run's name.
    """
    if source == str(tiny.FOLDER):
        return "tiny"
    if not ELSEWHERE.search(source):
        return source
    parts = PureWindowsPath(source).parts  # its separators are those of both systems
    run = parts[-4:-3] if parts[-3:-2] == ("stages",) and parts[-2] in ("sft", "grpo", "export") else ()
    return run[0] if run else parts[-1]


def writes_merged(recipe: Recipe) -> bool:
    """Whether the recipe's export writes merged weights: as a form, or to make a GGUF of them."""
    return recipe.export is not None and bool({"merged", "gguf"} & set(formats_of(recipe.export)))
