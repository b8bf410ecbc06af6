"""`toolkit run --dry-run`: run it, print its results, and print the command of the real run."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import open_recipe
from toolkit.cli.output import print_json

if TYPE_CHECKING:
    from toolkit.pipeline.dry_run import DryRunResult


def run_dry_run(recipe: Path, settings: Sequence[str], *, as_json: bool) -> None:
    """Perform the dry run of a recipe. Print rendered samples, the tables of results, and the next command."""
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.dry_run import dry_run
    from toolkit.pipeline.stages import STAGES
    from toolkit.runfolder import is_main_process

    loaded = open_recipe(recipe, settings)
    if loaded.imagegen is not None:
        from toolkit.cli import imagegen

        imagegen.dry_run_recipe(loaded, as_json=as_json)
        return
    with show_progress() as (progress, notify):
        result = dry_run(
            loaded, STAGES, show=(lambda rows: None) if as_json else show.rendered, progress=progress, notify=notify
        )
    if not is_main_process():
        return
    if as_json:
        print_json(result)
    else:
        show.results(result.results)
        print(*closing_lines(result, recipe, settings), sep="\n")


def closing_lines(result: "DryRunResult", recipe: Path, settings: Sequence[str]) -> list[str]:
    """Return the last lines of a dry run: its time and data, what the real run lacks, and the real run's command."""
    rows = "synthetic data, because its own rows are missing" if result.no_rows else "some of the recipe's own rows"
    lines = [
        f"\nthe dry run passed in {result.seconds:.0f} s, with the tiny model on {rows}. The figures above show that "
        "every stage works. They show nothing about the real model"
    ]
    lines += [f"before the real run: {line}" for line in result.lacking]
    words = ["toolkit", "run", str(recipe), *(word for setting in settings for word in ("--set", setting))]
    return [*lines, f"the real run: {shlex.join(words)}"]
