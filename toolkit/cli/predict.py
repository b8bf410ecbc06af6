"""The forms of `toolkit predict`: one question, every step of a file, one screenshot after another."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from toolkit.evaluation.predictor import StepPrediction
    from toolkit.runfolder import RunFolder

FORMS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "--interactive": (frozenset({"--interactive", "--goal"}), frozenset({"--context"})),
    "--steps": (frozenset({"--steps"}), frozenset({"--out", "--image-root"})),
    "--question": (frozenset({"--question", "--image"}), frozenset({"--option", "--context"})),
}
"""The option that chooses a form -> the options that it needs, and those that it may have besides."""

END = ("quit", "exit", "q")


def check_form(given: set[str]) -> str:
    """The form that these options ask for.

    Raises:
        typer.BadParameter: an option lacks, or belongs to another form.
    """
    chosen = [name for name in FORMS if name in given] or ["--interactive" if "--goal" in given else "--question"]
    needed, allowed = FORMS[chosen[0]]
    if missing := sorted(needed - given):
        raise typer.BadParameter(f"{chosen[0]} needs {' and '.join(missing)}" if chosen[0] in given else _HOW)
    if foreign := sorted(given - needed - allowed):
        raise typer.BadParameter(f"{', '.join(foreign)} cannot stand beside {chosen[0]}")
    return chosen[0]


_HOW = "name --question and --image, or --steps, or --goal and --interactive"


@dataclass(frozen=True, slots=True)
class Which:
    """Who is asked: ``path`` is a run folder or weights that lie in one, ``model`` what ``--model`` says."""

    path: Path
    model: str | None = None

    def ready(self) -> "tuple[RunFolder, Path | None]":
        """The run, and the weights that are asked instead of its own; what must precede the stages is imported.

        Raises:
            RunError: one of them is not there.
            ModelError: the recipe's backend cannot be had.
        """
        from toolkit.models import preload
        from toolkit.recipe import for_language_models
        from toolkit.runfolder import find_exported, locate_weights
        from toolkit.tasks import TASKS

        run, weights = locate_weights(self.path)
        for_language_models(run.recipe(TASKS), "toolkit predict")
        if self.model is not None:
            weights = find_exported(run, self.model).weights
        preload(run.recipe(TASKS), run.path, weights)
        return run, weights


def ask_one(
    which: Which, question: str, images: Sequence[Path], options: Sequence[str], context: Mapping[str, str]
) -> None:
    """Ask one question and print its answer."""
    from toolkit.cli import tables as show
    from toolkit.cli.progress import telling

    with telling():
        run, weights = which.ready()
        from toolkit.evaluation.predict import predict

        answer = predict(run, question, images, options, context, weights)
    show.answer(answer)


def ask_steps(which: Which, steps: Path, out: Path | None, image_root: Path | None) -> None:
    """Predict every step of a file into a JSONL, by default NAME.predictions.jsonl in the working directory."""
    from toolkit.cli import tables as show
    from toolkit.cli.progress import telling
    from toolkit.runfolder import StopRequest

    with telling() as (progress, notify), StopRequest(notify) as stop:
        run, weights = which.ready()
        from toolkit.evaluation.predict_episodes import Files, predict_chains

        files = Files(steps, out or Path(f"{steps.stem}.predictions.jsonl"), image_root)
        lines = predict_chains(run, files, stop, progress, chosen=weights)
    show.steps(lines, files.out)


def converse(which: Which, goal: str, context: Mapping[str, str]) -> None:
    """Read a screenshot's path a line from standard input and print the next step, with the memory of those before."""
    from toolkit.cli.progress import telling
    from toolkit.errors import DataError, ImageError

    with telling():  # not around the talk: a bar would hold back a line that does not end
        run, weights = which.ready()
        from toolkit.evaluation.predictor import load_model_for_inference

        predictor = load_model_for_inference(weights or run.path)
    short: dict[str, Any] = {}
    long: dict[str, Any] = {}
    number = 1
    print(f"goal: {goal}")
    while (path := _ask(f"screenshot of step {number} (or quit): ")) is not None:
        try:
            found = predictor.predict_step(path, goal, short, long, context)
        except (ImageError, DataError) as error:
            print(f"not asked: {error}")
            continue
        _show(found)
        short, long = dict(found.short_term_memory), dict(found.long_term_memory)
        number += 1


def _ask(prompt: str) -> str | None:
    """The next line that is not empty; None at the end of the input, or where it says so."""
    while True:
        print(prompt, end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip().lower() in END:
            print()
            return None
        if text := line.strip().strip("'\""):
            return text


def _show(found: "StepPrediction") -> None:
    if found.problem is not None:
        print(f"{found.completion}\nno step could be read: {found.problem}; the memory stays as it was")
        return
    place = "" if found.coords is None else f" at {', '.join(f'{number:.0f}' for number in found.coords)}"
    print(f"{found.action} {found.target or ''}{place}".replace("  ", " "))
    if found.reason:
        print(f"reason: {found.reason}")
    print(f"short-term memory: {dict(found.short_term_memory)}")
    print(f"long-term memory: {dict(found.long_term_memory)}")
