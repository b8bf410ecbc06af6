"""The modes of `toolkit predict`: one question, rows, a file of GUI steps, or one screenshot after another."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from toolkit.evaluation.predict import StepPrediction

MODES: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "--interactive": (frozenset({"--interactive", "--goal"}), frozenset({"--context"})),
    "--steps": (frozenset({"--steps"}), frozenset({"--out", "--image-root"})),
    "--data": (
        frozenset({"--data", "--out"}),
        frozenset({"--question", "--option", "--context", "--image-root", "--force"}),
    ),
    "--question": (frozenset({"--question", "--image"}), frozenset({"--option", "--context"})),
}
"""Option that selects a mode -> required options, and optional ones."""

END = ("quit", "exit", "q")

Chosen = tuple[Path, str | None]
"""A run folder or weights inside one, and the value of ``--model``."""


def check_mode(given: set[str]) -> str:
    """Return the mode that the options select.

    Raises:
        typer.BadParameter: an option is missing, or belongs to another mode.
    """
    selected = [name for name in MODES if name in given] or ["--interactive" if "--goal" in given else "--question"]
    required, optional = MODES[selected[0]]
    if missing := sorted(required - given):
        raise typer.BadParameter(f"{selected[0]} needs {' and '.join(missing)}" if selected[0] in given else _USAGE)
    if others := sorted(given - required - optional):
        raise typer.BadParameter(f"{', '.join(others)} must not be used with {selected[0]}")
    return selected[0]


_USAGE = "use --question and --image, or --data and --out, or --steps, or --goal and --interactive"


def predict_one(
    chosen: Chosen, question: str, images: Sequence[Path], options: Sequence[str], context: Mapping[str, str]
) -> None:
    """Answer one question and print the answer."""
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.existing_run import open_for_inference

    with show_progress():
        run, weights = open_for_inference(*chosen)
        from toolkit.evaluation.predict import predict  # after Unsloth is imported

        answer = predict(run, question, images, options, context, weights)
    show.answer(answer)


@dataclass(frozen=True, slots=True)
class TableOptions:
    """Options of ``--data``: rows and output, and values of every row."""

    data: Path
    out: Path
    image_root: Path | None
    question: str | None
    options: Sequence[str]
    context: Mapping[str, str]
    force: bool


def predict_table(chosen: Chosen, given: TableOptions) -> None:
    """Predict every row of a file, or every image of a folder, and print the counts."""
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.existing_run import open_for_inference
    from toolkit.runfolder import StopRequest

    with show_progress() as (progress, notify), StopRequest(notify) as stop:
        run, weights = open_for_inference(*chosen)
        from toolkit.evaluation.predict_rows import RowsRequest, predict_rows  # after Unsloth is imported
        from toolkit.evaluation.unlabelled import Constants

        constants = Constants(given.question, tuple(given.options), given.context)
        request = RowsRequest(given.data, given.out, given.image_root, constants, given.force)
        found = predict_rows(run, request, stop, progress, weights=weights)
    show.row_predictions(found)


def predict_file(chosen: Chosen, steps: Path, out: Path | None, image_root: Path | None) -> None:
    """Predict every GUI step of a file. The default output is NAME.predictions.jsonl in the working directory."""
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.existing_run import open_for_inference
    from toolkit.runfolder import StopRequest

    with show_progress() as (progress, notify), StopRequest(notify) as stop:
        run, weights = open_for_inference(*chosen)
        from toolkit.evaluation.predict_episodes import Files, predict_episodes  # after Unsloth is imported

        files = Files(steps, out or Path(f"{steps.stem}.predictions.jsonl"), image_root)
        lines = predict_episodes(run, files, stop, progress, chosen=weights)
    show.steps(lines, files.out)


def predict_interactively(chosen: Chosen, goal: str, context: Mapping[str, str]) -> None:
    """Read one screenshot path per line from standard input, and print the next GUI step and its agent memory."""
    from toolkit.cli.progress import show_progress
    from toolkit.errors import DataError, ImageError
    from toolkit.pipeline.existing_run import open_for_inference

    with show_progress():  # not around the dialogue, because a progress bar would delay the prompt
        run, weights = open_for_inference(*chosen)
        from toolkit.evaluation.predict import load_predictor  # after Unsloth is imported

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
