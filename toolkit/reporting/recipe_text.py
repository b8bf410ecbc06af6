"""The section of the recipe: every key with its value, without paths of this machine."""

from toolkit.exporting.public_names import public_recipe
from toolkit.recipe import Recipe
from toolkit.reporting.blocks import Code, Section, Table, Text
from toolkit.reporting.finished_run import FinishedRun
from toolkit.runfolder import read_state


def recipe_section(run: FinishedRun) -> Section:
    """Return the recipe with all defaults, and the digests of the run's inputs."""
    state = read_state(run.folder)
    versions = state.sessions[-1].versions
    inputs = [("seed", str(state.seed)), *((f"digest of {name}", one) for name, one in state.fingerprints.items())]
    table = Table.of(("", "value"), [*inputs, *versions.items()], "Inputs and versions", 2)
    if run.recipe is None:
        return Section("recipe", "Recipe", (Text("This version cannot read the recipe.", "warning"), table))
    return Section("recipe", "Recipe", (Code(recipe_text(run.recipe), "toml"), table))


def recipe_text(recipe: Recipe) -> str:
    """Return the recipe as TOML. Paths are replaced by the names of their files."""
    return public_recipe(recipe)
