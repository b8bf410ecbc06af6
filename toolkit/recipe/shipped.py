"""Recipes by name: a file of the user, otherwise a recipe that the package ships."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from toolkit.distribution import shipped_recipes

FOLDER = Path("recipes")
"""Folder in which a shipped recipe is read as if it were a copy. `toolkit recipes copy` writes to it."""


MAX_NAME = 100
"""Characters of a name. A longer one may be a path that the operating system rejects."""


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """The file of a recipe.

    Attributes:
        file: the TOML file. It may not exist.
        base: the folder that relative paths in the file start from.
        shipped: whether the package ships the file.
        by_name: whether it was found by its name, without a path.
    """

    file: Path
    base: Path
    shipped: bool = False
    by_name: bool = False


def find_recipe(given: Path) -> RecipeFile:
    """Return the file that a path or a name means.

    A name such as ``quickstart`` means the first existing file of ``quickstart``, ``quickstart.toml``,
    ``recipes/quickstart.toml`` and the shipped recipe. Paths in a shipped recipe start from ``recipes`` in the working
    directory, so that a copy in this folder is an equal recipe.
    """
    if given.name != str(given) or given.suffix or len(given.name) > MAX_NAME or given.is_file():
        return RecipeFile(given, given.parent)
    for file in (Path(f"{given}.toml"), FOLDER / f"{given}.toml"):
        if file.is_file():
            return RecipeFile(file, file.parent, by_name=True)
    if shipped := shipped_recipes().get(str(given)):
        return RecipeFile(shipped, FOLDER, shipped=True, by_name=True)
    return RecipeFile(given, given.parent)


def suggestion(path: Path) -> str:
    """Return the remedy for a recipe that does not exist: a file or a shipped recipe with a similar name."""
    files = {file.name: str(path.parent / file.name) for file in path.parent.glob("*.toml")}
    names = {name: name for name in shipped_recipes()}
    known = {**names, **({file.removesuffix(".toml"): shown for file, shown in files.items()})}
    if close := get_close_matches(path.name.removesuffix(".toml"), known, n=1):
        return f"Did you mean {known[close[0]]}?"
    return "Correct the path. `toolkit recipes list` prints the shipped recipes."
