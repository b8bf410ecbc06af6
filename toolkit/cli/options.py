"""Arguments and options that several commands have, and the error about an invalid one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.output import note
from toolkit.errors import ExitCode, ToolkitError

if TYPE_CHECKING:
    from toolkit.recipe import Recipe


class ArgumentError(ToolkitError):
    """An argument or option with an invalid value."""

    exit_code = ExitCode.INVALID


def complete_recipe(incomplete: str) -> list[str]:
    """Return the names of shipped recipes, and the TOML files, that begin with the text."""
    from toolkit.distribution import shipped_recipes

    start = Path(incomplete)
    folder = start if incomplete.endswith("/") else start.parent
    files = [str(file) for file in sorted(folder.glob("*")) if file.is_dir() or file.suffix == ".toml"]
    return [name for name in [*shipped_recipes(), *files] if name.startswith(incomplete)]


RecipePath = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe: a TOML file, or the name of a shipped recipe such as quickstart.",
        autocompletion=complete_recipe,
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")]
ModelChoice = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help="adapter, merged, gguf, a quantization such as q8_0, or a path to weights."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one value, such as grpo.learning_rate=1e-6."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def open_recipe(given: Path, settings: Sequence[str] | None, *, files: bool = False) -> "Recipe":
    """Return the recipe that a path or a name means. A name prints which file it means.

    Args:
        given: a TOML file, or the name of a shipped recipe.
        settings: ``--set`` values.
        files: also require that the files of the recipe exist.

    Raises:
        RecipeError: with all problems.
    """
    from toolkit.recipe import load_recipe
    from toolkit.recipe.shipped import find_recipe
    from toolkit.runfolder import is_main_process
    from toolkit.tasks import TASKS

    found = find_recipe(given)
    if found.by_name and is_main_process():
        origin = f"shipped with the toolkit, copied by `toolkit recipes copy {given}`" if found.shipped else "your file"
        note(f"recipe: {found.file} ({origin})")
    return load_recipe(given, settings or (), tasks=TASKS, files=files)
