"""`toolkit list`: the runs of a folder with their state and main score."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import AsJson
from toolkit.cli.output import print_json


def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that contains runs.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs of a folder: state, task, model, main score with interval and n, and start."""
    from toolkit.pipeline.run_list import list_runs as read_runs

    runs = read_runs(folder)
    if as_json:
        print_json({"folder": folder.absolute(), "runs": runs})
        return
    if not runs:
        print(f"no runs in {folder}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from toolkit.cli.tables import WIDTH, percent
    from toolkit.identifiers import printable

    table = Table(title=Text(f"runs in {printable(str(folder))}, 95 % intervals in brackets"))
    for name in ("run", "state", "task", "model", "main score", "n", "started (UTC)"):
        table.add_column(name, justify="right" if name == "n" else "left", overflow="fold")
    for one in runs:
        score = "" if one.score is None else f"{percent(one.score.value)} {one.score.name}, {one.score.label}"
        n = "" if one.score is None else f"{one.score.value.n:,}"
        started = (one.started or "")[:16].replace("T", " ")
        # Names of folders and values of recipes are no markup.
        cells = (one.folder.name, one.status, one.task or "", one.model or "", score, n, started)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(table)
    for one in runs:
        if one.problem is not None:
            console.print(printable(f"{one.folder.name}: {one.problem}"), markup=False, soft_wrap=True)
