"""`toolkit predict` and its modes: one question, rows, a file of GUI steps, or one screenshot after another."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolkit.cli.options import AsJson, ModelChoice, RunPath
from toolkit.cli.output import print_json

if TYPE_CHECKING:
    from toolkit.data.sample import Answer
    from toolkit.evaluation.predictor import StepPrediction

ONE, ROWS, STEPS = "One question", "Rows, or a folder of images", "GUI steps"
"""Panels of ``toolkit predict --help``."""

Question = Annotated[
    str | None, typer.Option(help="The question, without its options. With --data: of every row.", rich_help_panel=ONE)
]
Images = Annotated[
    list[Path] | None,
    typer.Option(help="An image. Repeat it for several.", exists=True, dir_okay=False, rich_help_panel=ONE),
]
Options = Annotated[
    list[str] | None,
    typer.Option(help='An option of a multiple-choice question, such as "A. Normal". Repeat it.', rich_help_panel=ONE),
]
Context = Annotated[
    list[str] | None,
    typer.Option(help="NAME=TEXT for a column of prompt.context. Repeat it.", rich_help_panel=ONE),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="SOURCE", help="Predict all rows of a file or folder, or all images of a folder.", rich_help_panel=ROWS
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="With --data: the .csv or .jsonl file to write. With --steps: the JSONL file.",
        dir_okay=False,
        rich_help_panel=ROWS,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="With --data: rename an existing --out to NAME.old-1.", rich_help_panel=ROWS),
]
ImageRoot = Annotated[
    Path | None,
    typer.Option(
        help="With --data or --steps: folder of the images. Default: that of the file.",
        exists=True,
        file_okay=False,
        rich_help_panel=ROWS,
    ),
]
RowSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="With --data: data.columns.FIELD, data.max_dropped, images.unreadable or evaluate.batch_size for it.",
        rich_help_panel=ROWS,
    ),
]
StepsFile = Annotated[
    Path | None,
    typer.Option(
        "--steps",
        metavar="FILE",
        help="Predict all GUI steps of a file (Task_id, Image_id, Instruction).",
        exists=True,
        rich_help_panel=STEPS,
    ),
]
Goal = Annotated[str | None, typer.Option(help="With --interactive: the goal of the GUI steps.", rich_help_panel=STEPS)]
Interactive = Annotated[
    bool,
    typer.Option(
        "--interactive",
        help="Prompt for one screenshot after another, and print the next GUI step.",
        rich_help_panel=STEPS,
    ),
]

MODES: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "--interactive": (frozenset({"--interactive", "--goal"}), frozenset({"--context"})),
    "--steps": (frozenset({"--steps"}), frozenset({"--out", "--image-root"})),
    "--data": (
        frozenset({"--data", "--out"}),
        frozenset({"--question", "--option", "--context", "--image-root", "--force", "--set"}),
    ),
    "--question": (frozenset({"--question", "--image"}), frozenset({"--option", "--context"})),
}
"""Option that selects a mode -> required options, and optional ones."""

OF_EVERY_MODE = frozenset({"run_folder", "--model", "--json", "--quiet"})

USAGE = "use --question and --image, or --data and --out, or --steps, or --goal and --interactive"

END = ("quit", "exit", "q")

Chosen = tuple[Path, str | None]
"""A run folder or weights inside one, and the value of ``--model``."""


def predict(
    ctx: typer.Context,
    run_folder: RunPath,
    model: ModelChoice = None,
    question: Question = None,
    image: Images = None,
    option: Options = None,
    context: Context = None,
    data: Data = None,
    out: Out = None,
    force: Force = False,
    image_root: ImageRoot = None,
    settings: RowSettings = None,
    steps: StepsFile = None,
    goal: Goal = None,
    interactive: Interactive = False,
    as_json: AsJson = False,
) -> None:
    """Predict with a run's model or one of its exports: one question, rows, GUI steps, or interactively."""
    _check_mode({param.opts[0] for param in ctx.command.params if ctx.params.get(param.name or "")})
    chosen, columns = (run_folder, model), dict(_name_and_text(text) for text in context or ())
    if data is not None and out is not None:
        table = RowsOptions(data, out, image_root, question, option or (), columns, force, settings or ())
        predict_source(chosen, table, as_json=as_json)
    elif steps is not None:
        predict_steps(chosen, steps, out, image_root, as_json=as_json)
    elif goal is not None:
        if as_json:
            raise typer.BadParameter("must be left out with --interactive", param_hint="--json")
        predict_interactively(chosen, goal, columns)
    elif question is not None and image is not None:
        answer = predict_question(chosen, question, image, option or (), columns)
        show_answer(answer, as_json=as_json)


def _check_mode(given: set[str]) -> None:
    """Check that the options belong to one mode.

    Raises:
        typer.BadParameter: an option is missing, or belongs to another mode.
    """
    selected = [name for name in MODES if name in given] or ["--interactive" if "--goal" in given else "--question"]
    required, optional = MODES[selected[0]]
    if missing := sorted(required - given):
        raise typer.BadParameter(f"{selected[0]} needs {' and '.join(missing)}" if selected[0] in given else USAGE)
    if others := sorted(given - required - optional - OF_EVERY_MODE):
        raise typer.BadParameter(f"{', '.join(others)} must not be used with {selected[0]}")


def _name_and_text(given: str) -> tuple[str, str]:
    name, equals, text = given.partition("=")
    if not equals:
        raise typer.BadParameter(f"must be NAME=TEXT (got {given!r})", param_hint="--context")
    return name.strip(), text.strip()


def predict_question(
    chosen: Chosen, question: str, images: Sequence[Path], options: Sequence[str], context: Mapping[str, str]
) -> "Answer":
    """Return the answer to one question."""
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.existing_run import open_for_inference

    with show_progress():
        run, weights = open_for_inference(*chosen)
        from toolkit.evaluation.predict import predict  # after Unsloth is imported

        return predict(run, question, images, options, context, weights)


def show_answer(answer: "Answer", *, as_json: bool) -> None:
    """Print an answer as text, or as one JSON object."""
    if as_json:
        print_json(answer)
        return
    from toolkit.cli import tables as show

    show.answer(answer)


@dataclass(frozen=True, slots=True)
class RowsOptions:
    """Options of ``--data``: rows and output, and values of every row."""

    data: Path
    out: Path
    image_root: Path | None
    question: str | None
    options: Sequence[str]
    context: Mapping[str, str]
    force: bool
    settings: Sequence[str]


def predict_source(chosen: Chosen, given: RowsOptions, *, as_json: bool) -> None:
    """Predict every row of a file, or every image of a folder, and print the counts."""
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.existing_run import open_for_inference
    from toolkit.runfolder import StopRequest

    with show_progress() as (progress, notify), StopRequest(notify) as stop:
        run, weights = open_for_inference(*chosen)
        from toolkit.evaluation.predict_rows import RowsRequest, predict_rows  # after Unsloth is imported
        from toolkit.evaluation.unlabelled_rows import Constants

        constants = Constants(given.question, tuple(given.options), given.context)
        request = RowsRequest(given.data, given.out, given.image_root, constants, given.force, given.settings)
        found = predict_rows(run, request, stop, progress, weights=weights)
    if as_json:
        print_json(found)
    else:
        show.row_predictions(found)


def predict_steps(chosen: Chosen, steps: Path, out: Path | None, image_root: Path | None, *, as_json: bool) -> None:
    """Predict every GUI step of a file. The default output is NAME.predictions.jsonl in the working directory."""
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.existing_run import open_for_inference
    from toolkit.runfolder import StopRequest

    with show_progress() as (progress, notify), StopRequest(notify) as stop:
        run, weights = open_for_inference(*chosen)
        from toolkit.evaluation.predict_episodes import EpisodesRequest, predict_episodes  # after Unsloth is imported

        request = EpisodesRequest(steps, out or Path(f"{steps.stem}.predictions.jsonl"), image_root)
        lines = predict_episodes(run, request, stop, progress, weights=weights)
    if as_json:
        print_json({"out": request.out, "predictions": lines})
    else:
        show.steps(lines, request.out)


def predict_interactively(chosen: Chosen, goal: str, context: Mapping[str, str]) -> None:
    """Read one screenshot path per line from standard input, and print the next GUI step and its agent memory."""
    from toolkit.cli.progress import show_progress
    from toolkit.errors import DataError, ImageError
    from toolkit.pipeline.existing_run import open_for_inference

    with show_progress():  # not around the dialogue, because a progress bar would delay the prompt
        run, weights = open_for_inference(*chosen)
        from toolkit.evaluation.predictor import load_predictor  # after Unsloth is imported

        predictor = load_predictor(weights or run.path)
    short: dict[str, Any] = {}
    long: dict[str, Any] = {}
    number = 1
    print(f"goal: {goal}")
    while (path := _read_line(f"screenshot of step {number} (or quit): ")) is not None:
        try:
            found = predictor.predict_step(path, goal, short, long, context)
        except (ImageError, DataError) as error:
            print(f"skipped: {error}")
            continue
        _print_step(found)
        short, long = dict(found.short_term_memory), dict(found.long_term_memory)
        number += 1


def _read_line(prompt: str) -> str | None:
    """Return the next line that is not empty. None at the end of the input or after one of ``END``."""
    while True:
        print(prompt, end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip().lower() in END:
            print()
            return None
        if text := line.strip().strip("'\""):
            return text


def _print_step(found: "StepPrediction") -> None:
    if found.problem is not None:
        print(f"{found.completion}\nthe GUI step could not be parsed: {found.problem}. The agent memory is unchanged")
        return
    place = "" if found.coords is None else f" at {', '.join(f'{number:.0f}' for number in found.coords)}"
    print(f"{found.action} {found.target or ''}{place}".replace("  ", " "))
    if found.reason:
        print(f"reason: {found.reason}")
    print(f"short-term memory: {dict(found.short_term_memory)}")
    print(f"long-term memory: {dict(found.long_term_memory)}")
