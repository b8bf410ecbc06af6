"""Names of models and their paths. No model library is imported, and nothing is loaded."""

import re
from pathlib import PureWindowsPath

from toolkit import tiny
from toolkit.models.llamacpp import formats_of
from toolkit.recipe import Model, Recipe

PATH_START = re.compile(r"^(?:~|\.{1,2})?[/\\]|^[A-Za-z]:[/\\]")
"""The beginning of a path. No name on the Hub has it."""


def model_source(model: Model) -> str:
    """Return the folder or Hub name of the model."""
    return str(tiny.FOLDER) if model.name == "tiny" else model.name


def public_name(source: str) -> str:
    """Return a name that reveals no path: the Hub name, ``tiny``, or the last part of a path.

    Weights of a run get the run's name.
    """
    if source == str(tiny.FOLDER):
        return "tiny"
    if not PATH_START.search(source):
        return source
    parts = PureWindowsPath(source).parts  # accepts the separators of Windows and POSIX
    run = parts[-4:-3] if parts[-3:-2] == ("stages",) and parts[-2] in ("sft", "dpo", "grpo", "export") else ()
    return run[0] if run else parts[-1]


def writes_merged(recipe: Recipe) -> bool:
    """Return whether the export writes merged weights, as a format or as the source of a GGUF."""
    return recipe.export is not None and bool({"merged", "gguf"} & set(formats_of(recipe.export)))
