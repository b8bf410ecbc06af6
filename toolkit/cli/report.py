"""`toolkit report`: report on runs as HTML, Markdown or JSON."""

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import AsJson

FORMER = "compute"
"""Former subcommand, whose tables are in every report."""


class ReportFormat(StrEnum):
    """Formats of a report."""

    html = "html"
    markdown = "markdown"
    json = "json"


def report(
    ctx: typer.Context,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, or folders with runs in them.")],
    form: Annotated[
        ReportFormat | None,
        typer.Option("--format", help="Default: that of --out, otherwise html. markdown and json are printed."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write: .html, .md or .json. Default for html: report.html in the run folder.",
            dir_okay=False,
        ),
    ] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Leave out images of rows.")] = False,
    no_examples: Annotated[
        bool, typer.Option("--no-examples", help="Leave out all texts and images of rows, to publish the report.")
    ] = False,
    custom_code: Annotated[
        bool, typer.Option("--custom-code", help="Run the Python files that a recipe names. Only if you trust the run.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Rename an existing file to NAME.old-1.")] = False,
    as_json: AsJson = False,
) -> None:
    """Report on one run, or on several side by side: results, training, examples, data, GPU memory, time and recipe.

    `toolkit run` writes the HTML report of its run at its end.
    """
    if runs[0].name == str(runs[0]) == FORMER and not runs[0].is_dir():
        from toolkit.recipe.renamed import use_new_name  # imports pydantic, which `toolkit --help` must not wait for

        former = f"toolkit report {FORMER}"
        ctx.fail(f"{former} was renamed. {use_new_name(former)}")
    if as_json and form not in (None, ReportFormat.json):
        raise typer.BadParameter(f"must be json with --json (got {form})", param_hint="--format")
    from toolkit.recipe.user_code import without_user_code
    from toolkit.reporting.report import ReportOptions, report_runs

    form = ReportFormat.json if as_json else form
    options = ReportOptions(images=not (no_images or no_examples), examples=not no_examples)
    with nullcontext() if custom_code else without_user_code():
        written = report_runs(runs, out, form.value if form else None, options, force=force)
    print(f"report: {written}" if isinstance(written, Path) else written, end="\n" if isinstance(written, Path) else "")
