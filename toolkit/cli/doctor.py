"""`toolkit doctor`: check the machine and print the findings."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.options import AsJson, complete_recipe, open_recipe
from toolkit.cli.output import note, print_json
from toolkit.errors import ExitCode

if TYPE_CHECKING:
    from toolkit.diagnostics import Examination
    from toolkit.recipe import Recipe

Seconds = Annotated[
    float | None,
    typer.Option("--time-limit", min=1, help="Seconds to import one library. Default: 120, and 300 for all."),
]


def doctor(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe whose model is checked. Default: MedGemma.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one value of the recipe.")
    ] = None,
    as_json: AsJson = False,
    time_limit: Seconds = None,
) -> None:
    """Check this machine: GPU, versions, libraries, Hub and disk, with a remedy for every problem."""
    from toolkit.cli.progress import show_progress
    from toolkit.diagnostics import examine
    from toolkit.diagnostics.probes import LIMIT, TOTAL

    limit = time_limit or LIMIT
    total = TOTAL * max(1.0, limit / LIMIT)
    with show_progress() as (progress, _):
        loaded = None if recipe is None else _load(recipe, settings or ())
        note(f"importing each library in its own process: up to {total:.0f} s")
        found = examine(loaded, limit=limit, total=total, progress=progress)
    if as_json:
        print_json(found.to_json())
    else:
        print(as_text(found))
    if found.count("problem"):
        raise typer.Exit(ExitCode.FAILED)


def _load(recipe: Path, settings: Sequence[str]) -> "Recipe | None":
    """Return the recipe. None: it cannot be read, because a library that reads data is broken."""
    from toolkit.errors import warn

    try:
        return open_recipe(recipe, settings)
    except (ImportError, AttributeError) as error:  # OpenCV without libGL, a broken pyarrow
        rule = "the recipe is not checked, because a library that reads data cannot be imported"
        warn("doctor.recipe_not_checked", rule, place=recipe, value=str(error), remedy="See the findings on libraries.")
        return None


def as_text(found: "Examination") -> str:
    """Return one line per finding, its remedy below it, and the counts. Characters follow the screen's encoding."""
    width = max(len(one.name) for one in found.findings)
    lines = []
    for one in found.findings:
        code = "" if one.state == "good" else f" [{one.code}]"
        lines.append(f"{one.state:<8} {one.name:<{width}}  {' '.join(one.found.split())}{code}")
        if one.remedy:
            lines.append(f"{'':<8} {'':<{width}}  -> {one.remedy}")
    problems, warnings = found.count("problem"), found.count("warning")
    counts = f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    lines.append(f"{counts}, {found.count('good')} good; {found.seconds:.0f} s")
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return "\n".join(lines).encode(encoding, "backslashreplace").decode(encoding)
