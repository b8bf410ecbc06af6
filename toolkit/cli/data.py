"""`toolkit data`: inspect the data of a recipe, generate synthetic data, and prepare downloads."""

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.app import App
from toolkit.cli.options import AsJson, RecipePath, Settings, open_recipe
from toolkit.cli.output import print_json
from toolkit.cli.prepare import prepare_app
from toolkit.errors import ExitCode

data_app = App(help="Inspect a recipe's data, generate synthetic data, or prepare a download.")
data_app.add_typer(prepare_app, name="prepare")


@data_app.command()
def synthetic(
    kind: Annotated[
        str, typer.Argument(help="Kind of synthetic data, such as chest. An unknown kind prints all kinds.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write to.", file_okay=False)],
    train: Annotated[int, typer.Option(min=1, max=1_000_000, help="Training rows.")] = 1200,
    validation: Annotated[int, typer.Option(min=0, max=1_000_000, help="Validation rows.")] = 0,
    test: Annotated[int, typer.Option(min=1, max=1_000_000, help="Test rows.")] = 400,
    size: Annotated[int, typer.Option(min=64, max=2048, help="Image width in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="The same seed generates the same images.")] = 3407,
    force: Annotated[
        bool, typer.Option("--force", help="Rename files in --out that this command did not write to NAME.old-1.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Generate synthetic data in the layout of a real dataset. Every answer is visible in its image."""
    from toolkit.cli import tables as show
    from toolkit.recipe import SyntheticData
    from toolkit.runfolder import output_files
    from toolkit.tasks import TASKS

    kinds = {task.synthetic.kind: (task, task.synthetic) for task in TASKS.values() if task.synthetic is not None}
    if kind not in kinds:
        known = "".join(f"\n  {name}: {one.description}" for name, (_, one) in kinds.items())
        raise typer.BadParameter(f"must be one of the following (got {kind!r}):{known}", param_hint="KIND")
    task, rows = kinds[kind]
    settings = SyntheticData(kind=kind, train=train, validation=validation, test=test, size=size)
    with output_files(out, force=force) as folder:
        files = {split: out / file.relative_to(folder) for split, file in rows.write(folder, settings, seed).items()}
    if as_json:
        print_json({"task": task.name, "files": {split: file.absolute() for split, file in files.items()}})
    else:
        show.synthetic(task.name, files)


@data_app.command()
def inspect(
    recipe: RecipePath,
    settings: Settings = None,
    rows: Annotated[
        int, typer.Option("--show", min=0, help="Print this many training rows as the model sees them.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Report the splits, unusable rows, leaks and images of a recipe.

    The exit code is 1 if an image is unusable and images.unreadable is "stop".
    """
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.prepare_data import inspect_data, summarise_data
    from toolkit.recipe import for_language_models

    loaded = for_language_models(open_recipe(recipe, settings, files=True), "toolkit data inspect")
    with show_progress() as (progress, _):
        data, scan, rendered = inspect_data(loaded, progress, rows)
    if as_json:
        print_json(
            summarise_data(data, scan, {}),
            fingerprint=data.fingerprint,
            rendered=[{"row": row, "text": text} for row, text in rendered],
        )
    else:
        show.data(data, scan)
        show.rendered(rendered)
    if scan.bad and loaded.images.unreadable == "stop":
        raise typer.Exit(ExitCode.FAILED)
