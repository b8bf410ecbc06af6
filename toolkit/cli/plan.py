"""`toolkit plan`: what a run will need, and whether it can work; also the first thing that `toolkit run` tells."""

import json
import logging
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.errors import PlanError, Problem, ToolkitError, warn

if TYPE_CHECKING:
    from toolkit.planning import Gpu, Plan, Rows
    from toolkit.recipe import Recipe
    from toolkit.runfolder import Record

log = logging.getLogger(__name__)

SIZES = 10_000
"""GB of GPU memory at most that ``--gpu`` takes."""
PRACTICE = 24
"""Practice rows at most that are made to count the tokens of a recipe that generates its data."""


def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a TOML file.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one value, such as grpo.learning_rate=1e-6."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object.")] = False,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME|GB", help="Plan for another GPU, by its name (T4) or its memory in GB (16)."),
    ] = None,
) -> None:
    """Print what a run will need before anything is spent. Exit code 1: it cannot work.

    Vision-language model: rows, tokens, steps, GPU memory, time, disk. Image generator, if the recipe has the
    section imagegen: ratings and their
    splits, optimizer steps, images to generate, GPU memory, time, disk.
    """
    from toolkit.cli.planned import lines
    from toolkit.cli.progress import hush
    from toolkit.planning import find_gpu
    from toolkit.recipe import load_recipe
    from toolkit.tasks import TASKS

    loaded = load_recipe(recipe, settings or (), tasks=TASKS)
    if loaded.imagegen is not None:
        _tell_imagegen(loaded, find_gpu() if gpu is None else _other_gpu(gpu), as_json=as_json)
    hush()
    found = make(loaded, find_gpu() if gpu is None else _other_gpu(gpu))
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False, default=str))
    else:
        print("\n".join(lines(found)))
    raise typer.Exit(1 if found.problems else 0)


def _tell_imagegen(recipe: "Recipe", gpu: "Gpu | None", *, as_json: bool) -> None:
    """Print the plan of a recipe with [imagegen], and exit."""
    from toolkit.cli.planned_imagegen import lines
    from toolkit.planning.imagegen import make_imagegen_plan

    with _quiet():
        found = make_imagegen_plan(recipe, gpu)
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False, default=str))
    else:
        print("\n".join(lines(found)))
    raise typer.Exit(1 if found.problems else 0)


def _other_gpu(given: str) -> "Gpu":
    """The GPU that ``--gpu`` names: a number is its memory in GB.

    Raises:
        typer.BadParameter: the size cannot be, or no GPU with known figures has this name.
    """
    from toolkit.planning import described_gpu, named_gpu
    from toolkit.planning.gpu import GPUS

    try:
        size = float(given.lower().removesuffix("gb"))
    except ValueError:
        if found := named_gpu(given):
            return found
        known = ", ".join(one.name for one in GPUS)
        text = (
            f"must be a GPU with known figures (got {given!r}). Give its memory in GB, such as 16, or one of: {known}."
        )
        raise typer.BadParameter(text, param_hint="--gpu") from None
    if not 1 <= size <= SIZES:
        raise typer.BadParameter(f"must be from 1 to {SIZES:,} GB (got {given})", param_hint="--gpu")
    return described_gpu(size)


def plan_run(recipe: "Recipe", *, fresh: bool) -> "Record | None":
    """The plan of a run that is about to begin, told in a few log lines; None for one that goes on, which has its own.

    Raises:
        PlanError: the run cannot work, which is certain. Rows that cannot be read are left to the run itself, whose
            log then has them.
    """
    from toolkit.runfolder import RunFolder

    kept = RunFolder(recipe.run_folder.absolute())
    if not fresh and kept.run_file.is_file():
        log.info("plan: %s", "as when the run began (plan.json)" if kept.plan_file.is_file() else "none was kept")
        return None
    found = _make_first(recipe)
    for line in found.lines:
        log.info("%s", line)
    for one in found.warnings:
        warn(one.code, one.rule, place=one.place, value=one.value, remedy=one.remedy)
    if found.certain:
        raise PlanError(found.certain)
    return dict(found.record)


@dataclass(frozen=True, slots=True)
class Told:
    """What a run says of its plan, in plain values: lines, warnings, problems that end it, and the whole as JSON."""

    lines: tuple[str, ...]
    warnings: tuple[Problem, ...]
    certain: tuple[Problem, ...]
    record: "Record"


def _make_first(recipe: "Recipe") -> Told:
    """The plan of a run for the card that is here.

    It is made in a process of its own where the run will import Unsloth: a plan imports transformers, which must not be
    there before Unsloth is.
    """
    from toolkit.models import backend_name

    if recipe.imagegen is not None:
        return tell_imagegen(recipe)
    if backend_name(recipe.model) == "hf":
        return tell(recipe)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        return apart.submit(tell, recipe).result()


def tell(recipe: "Recipe") -> Told:
    """The plan of a run for the card that is here, as a run tells it."""
    from toolkit.cli.planned import short_lines
    from toolkit.planning import find_gpu

    found = make(recipe, find_gpu())
    certain = [problem for problem in found.problems if problem.certain] if "data" not in found.unknown else []
    return Told(
        lines=tuple(short_lines(found)),
        warnings=tuple(finding.details for finding in found.findings if not finding.certain),
        certain=tuple(problem.details for problem in certain),
        record=found.to_json(),
    )


def tell_imagegen(recipe: "Recipe") -> Told:
    """The plan of a recipe with [imagegen] for the GPU that is here, as a run tells it."""
    from toolkit.cli.planned_imagegen import short_lines
    from toolkit.planning import find_gpu
    from toolkit.planning.imagegen import make_imagegen_plan

    with _quiet():
        found = make_imagegen_plan(recipe, find_gpu())
    return Told(
        lines=tuple(short_lines(found)),
        warnings=tuple(finding.details for finding in found.findings if finding not in found.certain),
        certain=tuple(finding.details for finding in found.certain),
        record=found.to_json(),
    )


def make(recipe: "Recipe", gpu: "Gpu | None") -> "Plan":
    """The plan of a recipe for a card; its rows are read, or a few practice rows made."""
    from toolkit.planning import make_plan

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        try:
            rows: Rows | ToolkitError = _rows(recipe, Path(folder))
        except ToolkitError as error:
            rows = error
        return make_plan(recipe, rows, gpu)


def _rows(recipe: "Recipe", folder: Path) -> "Rows":
    from toolkit.pipeline.prepare_data import image_store, read_rows
    from toolkit.planning import Rows
    from toolkit.recipe import SPLITS

    phantom = recipe.dataset.phantom
    if phantom is None:
        data = read_rows(recipe, folder)
        return Rows(data, image_store(recipe, data), {name: len(getattr(data, name)) for name in SPLITS})
    rows = {name: getattr(phantom, name) for name in SPLITS}
    few = phantom.model_copy(update={name: min(count, PRACTICE) for name, count in rows.items()})
    small = recipe.model_copy(update={"data": recipe.dataset.model_copy(update={"phantom": few})})
    data = read_rows(small, folder)
    return Rows(data, image_store(small, data), rows, practice=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """What reading rows tells stands in the plan; the run tells it again."""
    logger = logging.getLogger("toolkit")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
