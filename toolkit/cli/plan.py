"""`toolkit plan`: estimate what a run needs, and whether it can work."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from toolkit.pipeline.plan import AnyPlan
    from toolkit.planning import Gpu


def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a TOML file.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one value, such as grpo.learning_rate=1e-6."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object.")] = False,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME|GB", help="Plan for another GPU, by name (T4) or memory in GB (16)."),
    ] = None,
) -> None:
    """Estimate what a run needs. The exit code is 1 if it cannot work.

    Vision-language model: rows, tokens, optimizer steps, GPU memory, time and disk. Image generator (a recipe
    with the section imagegen): ratings, splits, optimizer steps, generated images, GPU memory, time and disk.
    """
    from toolkit.cli.progress import hide_library_warnings
    from toolkit.pipeline.plan import plan_recipe
    from toolkit.planning import find_gpu
    from toolkit.recipe import load_recipe
    from toolkit.tasks import TASKS

    loaded = load_recipe(recipe, settings or (), tasks=TASKS)
    hide_library_warnings()
    found = plan_recipe(loaded, find_gpu() if gpu is None else _parse_gpu(gpu))
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False, default=str))
    else:
        print("\n".join(_all_lines(found)))
    raise typer.Exit(1 if found.problems else 0)


def short_lines(plan: "AnyPlan") -> Iterable[str]:
    """Return the plan in a few lines, with which `toolkit run` starts."""
    from toolkit.cli import planned, planned_imagegen
    from toolkit.planning import Plan

    return planned.short_lines(plan) if isinstance(plan, Plan) else planned_imagegen.short_lines(plan)


def _all_lines(plan: "AnyPlan") -> Iterable[str]:
    from toolkit.cli import planned, planned_imagegen
    from toolkit.planning import Plan

    return planned.lines(plan) if isinstance(plan, Plan) else planned_imagegen.lines(plan)


def _parse_gpu(text: str) -> "Gpu":
    """Return the GPU that ``--gpu`` names. Raises typer.BadParameter if it is unknown."""
    from toolkit.errors import PlanError
    from toolkit.pipeline.plan import parse_gpu

    try:
        return parse_gpu(text)
    except PlanError as error:
        raise typer.BadParameter(str(replace(error.problems[0], place="")), param_hint="--gpu") from None
