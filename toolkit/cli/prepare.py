"""`toolkit data prepare`: turn a download into rows."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.app import App
from toolkit.cli.options import AsJson
from toolkit.cli.output import print_json

if TYPE_CHECKING:
    from toolkit.prepare import PrepareResult

prepare_app = App(help="Turn a download into rows: boxes, outlines and locations from masks, and splits without leaks.")


class MaskReadings(StrEnum):
    """Readings of a mask with more than two values. Typer does not accept a list of literals."""

    TWO = "two"
    ANY = "any"
    EACH = "each"


class ClassKinds(StrEnum):
    """What the diagnosis of a row is."""

    DIAGNOSIS = "diagnosis"
    MALIGNANCY = "malignancy"


Out = Annotated[Path, typer.Option(help="The folder to write to.", file_okay=False)]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same splits on every machine.")]
Validation = Annotated[float, typer.Option(min=0, max=0.9, help="Fraction held out for validation.")]
Test = Annotated[float, typer.Option(min=0, max=0.9, help="Fraction held out for testing.")]
MaskValues = Annotated[
    MaskReadings,
    typer.Option(
        help="Masks with more values than 0 and another one. two: an error. any: all values but 0 are the lesion. "
        "each: each value has regions of its own."
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Rename files in --out that this command did not write to NAME.old-1.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes that read masks. Default: one per core.")]


@prepare_app.command()
def ham10000(
    images: Annotated[
        list[Path],
        typer.Option(help="A folder of images, named by image_id. Repeat it.", exists=True, file_okay=False),
    ],
    metadata: Annotated[Path, typer.Option(help="HAM10000_metadata.csv.", exists=True, dir_okay=False)],
    out: Out,
    masks: Annotated[
        Path | None, typer.Option(help="The folder of the official masks.", exists=True, file_okay=False)
    ] = None,
    mask_values: MaskValues = MaskReadings.TWO,
    seed: Seed = 3407,
    validation: Validation = 0.1,
    test: Test = 0.2,
    workers: Workers = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Prepare HAM10000: one row per image, split by lesion, with boxes and outlines from masks."""
    from toolkit.cli.progress import show_progress
    from toolkit.prepare import PrepareRequest, prepare_ham10000

    with show_progress() as (progress, notify):
        request = PrepareRequest(out, seed, validation, test, workers, progress, notify, mask_values.value, force)
        prepared = prepare_ham10000(images, masks, metadata, request)
    show(prepared, as_json=as_json)


@prepare_app.command()
def isic(
    source: Annotated[
        Path, typer.Option(help="The folder of the download: tables, images and masks.", exists=True, file_okay=False)
    ],
    stage: Annotated[int, typer.Option(min=1, max=2, help="1: all known fields of each image. 2: boxes.")],
    out: Out,
    classes: Annotated[
        ClassKinds | None,
        typer.Option(
            help="The diagnosis of a row: diagnosis (named ones only) or malignancy (benign, malignant). "
            "Default: diagnosis if any image has a named one."
        ),
    ] = None,
    mask_values: MaskValues = MaskReadings.TWO,
    seed: Seed = 3407,
    validation: Validation = 0.1,
    test: Test = 0.2,
    workers: Workers = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Prepare an ISIC archive or challenge: one row per image, split by patient, otherwise by lesion."""
    from toolkit.cli.progress import show_progress
    from toolkit.prepare import PrepareRequest, prepare_isic

    with show_progress() as (progress, notify):
        request = PrepareRequest(out, seed, validation, test, workers, progress, notify, mask_values.value, force)
        prepared = prepare_isic(source, 1 if stage == 1 else 2, request, None if classes is None else classes.value)
    show(prepared, as_json=as_json)


def show(prepared: "PrepareResult", *, as_json: bool) -> None:
    """Print the rows, the counts, and the recipe section that reads them."""
    if as_json:
        print_json(prepared, rows=prepared.rows)
        return
    print(f"{prepared.rows:,} rows in {prepared.out.absolute()}")
    for split, groups in prepared.groups.items():
        rows = sum(counts[split] for counts in prepared.classes.values())
        print(f"  {split}: {rows:,} rows, {groups:,} distinct {prepared.group}")
    for name, counts in prepared.classes.items():
        shown = ", ".join(f"{split} {number:,}" for split, number in counts.items())
        print(f"  {name or 'no diagnosis'}: {shown}")
    for note in prepared.notes:
        print(f"{note.count:,} {note.reason} (for example {'; '.join(note.shown)})")
    print(f"contact sheet: {prepared.out.absolute() / 'sheet.png'}, {prepared.out.absolute() / 'sheet.html'}")
    task = _task_of(prepared.columns)
    print(f"\nfor a recipe:\n\n[data]\ntask = {_quoted(task)}")
    for split, file in prepared.splits.items():
        print(f"{split} = {_quoted(file.absolute())}")
    if "boxes" in prepared.columns:
        print('boxes = "xyxy"')
    print(f"image_root = {_quoted(prepared.image_root)}\ngroup = {_quoted(prepared.group)}")
    if prepared.labels or prepared.answer:
        print(f"\n[data.{task}]")
    if prepared.answer:
        print(f"answer = {json.dumps(prepared.answer)}")
    if prepared.labels:
        print(f"labels = {_quoted(prepared.labels.absolute())}")


def _task_of(columns: Sequence[str]) -> str:
    """Return the task that reads most of the columns."""
    from toolkit.tasks import TASKS

    def known(name: str) -> int:
        return sum(any(column in names for column in columns) for names in TASKS[name].columns.values())

    return max(TASKS, key=known)


def _quoted(value: object) -> str:
    """Return a basic string of TOML. JSON quotes it the same way."""
    return json.dumps(str(value), ensure_ascii=False)
