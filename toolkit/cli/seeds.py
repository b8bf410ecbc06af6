"""`toolkit run --seeds`: run a recipe with several seeds, and print each seed and their mean."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import open_recipe
from toolkit.cli.output import print_json
from toolkit.cli.plan import short_lines

if TYPE_CHECKING:
    from toolkit.pipeline import RunResults
    from toolkit.pipeline.seeds import SeedsResult
    from toolkit.recipe import Recipe


def run_with_seeds(recipe: Path, settings: Sequence[str], seeds: str, *, fresh: bool, as_json: bool) -> None:
    """Run a recipe with each of the seeds, and print the tables over all of them."""
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline import run_recipe
    from toolkit.pipeline.plan import plan_run
    from toolkit.pipeline.seeds import parse_seeds, run_seeds
    from toolkit.pipeline.stages import STAGES
    from toolkit.runfolder import is_main_process

    chosen, loaded = parse_seeds(seeds), open_recipe(recipe, settings, files=True)
    with show_progress() as (progress, notify):

        def run(one: "Recipe") -> "RunResults":
            planned = plan_run(one, fresh=fresh, describe=short_lines) if is_main_process() else None
            return run_recipe(one, STAGES, fresh=fresh, plan=planned, progress=progress, notify=notify)

        result = run_seeds(loaded, chosen, run, fresh=fresh)
    if not is_main_process():
        return
    if as_json:
        print_json(result)
    else:
        print_seeds(result)


def print_seeds(result: "SeedsResult") -> None:
    """Print one table for each score: the evaluations, each seed, and their mean."""
    from rich.console import Console
    from rich.table import Table

    from toolkit.cli.tables import WIDTH
    from toolkit.pipeline.seeds import NOTE, cells, head

    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for score, rows in result.tables.items():
        samples = rows[0].values[0].n
        table = Table(title=f"{score} on the {result.split} split, {samples:,} samples")
        for number, name in enumerate(head(result)):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*cells(row))
        console.print(table)
    console.print(NOTE, markup=False)
    console.print(f"runs: {', '.join(result.runs)}. Summary: {result.folder}", markup=False, soft_wrap=True)
