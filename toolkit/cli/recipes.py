"""`toolkit recipes`: list, print and copy the recipes and notebooks that the package ships."""

import re
import shutil
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.app import App
from toolkit.cli.options import ArgumentError, AsJson
from toolkit.cli.output import print_json
from toolkit.distribution import constraints_file, shipped_notebooks, shipped_recipes

if TYPE_CHECKING:
    from collections.abc import Mapping

recipes_app = App(help="List, print or copy the recipes and notebooks that the package ships.")


def _complete(incomplete: str) -> list[str]:
    return [name for name in _shipped() if name.startswith(incomplete)]


Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A name that `toolkit recipes list` prints.", autocompletion=_complete)
]


@recipes_app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """Print the name and the first sentence of each recipe and notebook."""
    kinds = {"recipes": shipped_recipes(), "notebooks": shipped_notebooks()}
    found = {
        kind: [{"name": name, "description": _describe(file), "file": file} for name, file in files.items()]
        for kind, files in kinds.items()
    }
    if as_json:
        print_json(found)
        return
    width = max(len(str(one["name"])) for listed in found.values() for one in listed)
    for kind, listed in found.items():
        print(f"{kind}:")
        for one in listed:
            print(f"  {one['name']:<{width}}  {one['description']}")
    print("\nrun one: toolkit run NAME. Change one: toolkit recipes copy NAME")


@recipes_app.command()
def show(name: Name) -> None:
    """Print a recipe, or the code of a notebook."""
    file = _find(name)
    source = file.with_suffix(".py") if file.suffix == ".ipynb" else file
    print(source.read_text(encoding="utf-8"), end="")


@recipes_app.command()
def copy(
    name: Name,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to copy to.")] = Path("recipes"),
    as_json: AsJson = False,
) -> None:
    """Copy a recipe or a notebook, and the recipe whose run it continues. No file is replaced."""
    copied = [_copy(file, folder) for file in _with_earlier_stages(_find(name))]
    if as_json:
        print_json({"files": [file.absolute() for file, _ in copied]})
        return
    for file, is_new in copied:
        print(file if is_new else f"{file} (unchanged)")


def constraints() -> None:
    """Print the path of the constraints file: the versions that were tested together, for pip install -c."""
    print(constraints_file())


def _shipped() -> "Mapping[str, Path]":
    return {**shipped_recipes(), **shipped_notebooks()}


def _find(name: str) -> Path:
    """Return the file of a shipped recipe or notebook. Raises ArgumentError if the name is unknown."""
    known = _shipped()
    if name not in known:
        close = get_close_matches(name, known, n=1)
        remedy = f"Did you mean {close[0]}?" if close else "`toolkit recipes list` prints all names."
        rule = "must be the name of a shipped recipe or notebook"
        raise ArgumentError("recipes.name_unknown", rule, place="NAME", value=name, remedy=remedy)
    return known[name]


def _describe(file: Path) -> str:
    """Return the first sentence of a recipe's comment, or the title of a notebook."""
    source = file.with_suffix(".py") if file.suffix == ".ipynb" else file
    lines = source.read_text(encoding="utf-8").splitlines()
    if file.suffix == ".ipynb":
        return next(line.removeprefix("# # ") for line in lines if line.startswith("# # "))
    comment = " ".join(line.lstrip("# ") for line in lines[: lines.index("[run]")])
    return re.split(r"(?<!et al)\. |  ", comment)[0].rstrip(".")


def _with_earlier_stages(file: Path) -> list[Path]:
    """Return the recipes whose runs a recipe starts from, the first one first, then the recipe itself."""
    import tomllib

    if file.suffix != ".toml":
        return [file]
    adapter = tomllib.loads(file.read_text(encoding="utf-8")).get("model", {}).get("adapter", "")
    earlier = shipped_recipes().get(Path(adapter).name)
    return [*(_with_earlier_stages(earlier) if earlier else []), file]


def _copy(file: Path, folder: Path) -> tuple[Path, bool]:
    """Copy a file, and return its copy and whether it is new. An equal file is kept.

    Raises:
        ArgumentError: another file has the name.
    """
    target = folder / file.name
    if target.is_file() and target.read_bytes() == file.read_bytes():
        return target, False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("rb") as source, target.open("xb") as out:
            shutil.copyfileobj(source, out)
    except FileExistsError as error:
        rule, remedy = "must not exist, because no file is replaced", "Copy to another folder, or rename your file."
        raise ArgumentError("recipes.file_exists", rule, place=target, remedy=remedy) from error
    return target, True
