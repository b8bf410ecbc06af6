"""`toolkit report`: report on runs."""

from pathlib import Path
from typing import Annotated

import typer

report_app = typer.Typer(help="Report on runs.", no_args_is_help=True)


@report_app.callback()
def report() -> None:
    """Keep `compute` a named command although it is the only one."""


@report_app.command()
def compute(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders, or folders with runs in them.")],
    out: Annotated[
        Path | None, typer.Option(help="Also write the report to this file: .md or .json.", dir_okay=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Rename an existing --out to NAME.old-1.")] = False,
) -> None:
    """Report hours, RAM, GPU memory, energy, CO2 and FLOPs by purpose, and the cost of 1,000 predictions."""
    from toolkit.reporting import as_markdown, read_ledger, write_report

    ledger = read_ledger(runs)
    if out is not None:
        write_report(ledger, out, force=force)
    print(as_markdown(ledger), end="")
