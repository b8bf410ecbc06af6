"""The commands for finished runs of image generation: generate images, write rating sheets, collect ratings."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from toolkit.cli.app import App
from toolkit.cli.options import AsJson
from toolkit.cli.output import print_json
from toolkit.errors import warn

if TYPE_CHECKING:
    from toolkit.imagegen.generate import GeneratedFile
    from toolkit.imagegen.ratings.experts import IntraRater
    from toolkit.imagegen.ratings.next_round import Collected
    from toolkit.imagegen.ratings.sheet import Sheet

imagegen_app = App(
    help="Image generation: images and rating sheets of a finished run, and the ratings that experts return.",
)


class Method(StrEnum):
    """The source of images. Typer does not accept a list of literals."""

    BASE = "base"
    SFT = "sft"
    DDPO = "ddpo"


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/imagegen_tiny.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same images and the same order.")]
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write. It must be new or empty.")]

MAX_SHOWN = 10


@imagegen_app.command()
def generate(
    run_folder: RunPath,
    out: Out,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A description of the image. Repeat for several prompts."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 1,
    best_of: Annotated[
        int,
        typer.Option("--best-of", metavar="N", min=1, help="Generate N images for each and keep the selector's best."),
    ] = 1,
    method: Annotated[
        Method | None, typer.Option(help="Source of the images. Default: the method with the highest judge score.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="Modality of the prompts. Without --prompt: all prompts of the run with it.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Generate PNG files from a finished run, with images.csv: prompt, method, seed and selector score of each."""
    from toolkit.cli.progress import show_progress
    from toolkit.runfolder import StopRequest

    with show_progress() as (progress, notify), StopRequest(notify) as stop:
        from toolkit.imagegen.generate import ImageRequest, find_prompts, open_finished, write_images

        finished = open_finished(run_folder, "toolkit imagegen generate")
        chosen = str(method) if method else finished.best_method()
        prompts = find_prompts(finished, prompt or (), modality)
        request = ImageRequest(prompts, count, best_of, seed, chosen)
        files = write_images(finished, request, out, stop, progress)
    if as_json:
        print_json({"table": out / "images.csv", "images": files})
    else:
        _show_files(files, out)


@imagegen_app.command()
def sheet(
    run_folder: RunPath,
    out: Out,
    method: Annotated[
        list[Method] | None, typer.Option(help="Source of images. Repeat for several. Default: base and all methods.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of each method.")] = 50,
    per_page: Annotated[
        int, typer.Option("--per-page", min=2, max=100, help="Images per page, repeats included.")
    ] = 100,
    repeated: Annotated[
        float, typer.Option(min=0, max=0.5, help="Fraction of images shown twice, for intra-rater agreement.")
    ] = 0.1,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write a rating sheet of a finished run's images: pages for experts, blinded to the source of each image."""
    from toolkit.cli.progress import show_progress

    with show_progress() as (progress, _):
        from toolkit.imagegen.generate import open_finished
        from toolkit.imagegen.ratings.next_round import write_run_sheet
        from toolkit.imagegen.ratings.sheet import SheetOptions

        finished = open_finished(run_folder, "toolkit imagegen sheet")
        options = SheetOptions(seed, repeated, per_page)
        sources = [str(one) for one in method or finished.methods]
        written, key_file = write_run_sheet(finished, sources, images, options, out, progress)
    if as_json:
        shown = {"id": written.id, "images": len(written.key.images), "pages": written.pages, "key": key_file}
        print_json(shown)
    else:
        _show_sheet(written, key_file, run_folder, out)


@imagegen_app.command()
def collect(
    run_folder: RunPath,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="CSV", help="CSV files that experts downloaded from the pages.", exists=True, dir_okay=False
        ),
    ],
    sheet_folder: Annotated[Path, typer.Option("--sheet", metavar="FOLDER", help="The sheet's folder.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The CSV file to write. Default: ratings.csv in the sheet's folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Join the CSV files that experts returned into ratings for the next run, and print intra-rater agreement."""
    from toolkit.cli.progress import show_progress

    with show_progress():
        from toolkit.imagegen.generate import open_finished
        from toolkit.imagegen.ratings.next_round import collect_run_sheet

        finished = open_finished(run_folder, "toolkit imagegen collect")
        collected = collect_run_sheet(finished, files, sheet_folder, out)
    if as_json:
        print_json(collected)
    else:
        _show_collected(collected, sheet_folder)
    if collected.missing:
        rule, value = "every image of the sheet should have a rating", f"{collected.missing:,} without a rating"
        warn("imagegen.sheet_images_unrated", rule, place=sheet_folder, value=value)


def push_lora(run_folder: Path, repo: str, method: str | None, *, public: bool, force: bool, as_json: bool) -> None:
    """Push the LoRA of a run and print its address."""
    from toolkit.cli.progress import show_progress

    with show_progress():
        from toolkit.exporting.push import Push
        from toolkit.pipeline.imagegen import push_generator

        pushed = push_generator(run_folder, Push(repo, public, force), method)
    if as_json:
        print_json(pushed)
        return
    print(f"LoRA of {pushed.method}, licence {pushed.licence}\npushed: {pushed.url}")


def _console() -> Console:
    from toolkit.cli.imagegen import WIDTH

    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def _show_files(files: "tuple[GeneratedFile, ...]", out: Path) -> None:
    table = Table(title=f"synthetic images by {files[0].method}, seed {files[0].seed}")
    for name in ("file", "prompt", "noise", "selector score"):
        table.add_column(name, justify="left" if name in ("file", "prompt") else "right", overflow="fold")
    for file in files[:MAX_SHOWN]:
        table.add_row(file.image_path, file.prompt, str(file.noise), f"{file.selector_score:.3f}")
    console = _console()
    console.print(table)
    mean = sum(file.selector_score for file in files) / len(files)
    best = f", each the best of {files[0].candidates}" if files[0].candidates > 1 else ""
    console.print(f"{len(files):,} images{best}, mean selector score {mean:.3f}: {out / 'images.csv'}", markup=False)


def _show_sheet(sheet: "Sheet", key_file: Path, run_folder: Path, out: Path) -> None:
    repeated = sum(len(entry.positions) > 1 for entry in sheet.key.images)
    sources: dict[str, int] = {}
    for entry in sheet.key.images:
        sources[entry.source] = sources.get(entry.source, 0) + 1
    print(f"sheet {sheet.id}: {len(sheet.key.images):,} images, {repeated:,} of them shown twice")
    print(f"sources: {', '.join(f'{source} {number:,}' for source, number in sources.items())}")
    print(f"for experts: {out} ({len(sheet.pages)} pages, {sheet.pages[0].name} is the first)")
    print(f"key with the sources, not for experts: {key_file}")
    print(f"then: toolkit imagegen collect {run_folder} ratings_*.csv --sheet {out}")


def _show_collected(collected: "Collected", sheet_folder: Path) -> None:
    console = _console()
    table = Table(title="ratings by source")
    for name in ("source", "ratings", "mean (0 to 1)", "best rating"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for source, found in collected.by_source.items():
        table.add_row(source, f"{found.ratings:,}", f"{found.mean:.3f}", f"{found.best:.1%}")
    console.print(table)
    console.print(f"intra-rater agreement: {_agreement(collected.agreement)}", markup=False)
    for rater, own in collected.agreement.by_rater.items() if len(collected.agreement.by_rater) > 1 else ():
        console.print(f"  {rater}: {_agreement(own)}", markup=False)
    console.print(f"{collected.ratings:,} ratings of {collected.images:,} images: {collected.file}", markup=False)
    console.print("\nfor the next recipe, beside the earlier files:\n\n[imagegen]", markup=False)
    console.print(f"ratings = [{json.dumps(str(collected.file), ensure_ascii=False)}]", markup=False, soft_wrap=True)
    if collected.file.parent != sheet_folder.absolute():
        root = json.dumps(str(sheet_folder.absolute()), ensure_ascii=False)
        console.print(f"image_root = {root}", markup=False, soft_wrap=True)


def _agreement(found: "IntraRater") -> str:
    if found.kappa is None:
        return f"undefined, because {found.reason} (n {found.n})"
    interval = "" if found.low is None or found.high is None else f" [{found.low:.3f} to {found.high:.3f}]"
    return f"kappa {found.kappa:.3f}{interval}, {found.equal:.1%} equal, n {found.n}"
