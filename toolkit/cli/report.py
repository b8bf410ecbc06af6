"""The commands that report on runs."""

from pathlib import Path
from typing import Annotated

import typer

report_app = typer.Typer(help="Report on runs.", no_args_is_help=True)


@report_app.callback()
def report() -> None:
    """Its commands have names, even while there is one."""


@report_app.command()
def compute(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders, or folders with runs in them.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the report into this file too: .md or .json.", dir_okay=False)
    ] = None,
) -> None:
    """What runs used: hours, memory, energy, CO2, FLOPs, by purpose, and the cost of 1,000 predictions."""
    from toolkit.reporting import as_markdown, read_ledger, write_report

    ledger = read_ledger(runs)
    if out is not None:
        write_report(ledger, out)
    print(as_markdown(ledger), end="")
