"""`toolkit plan`: estimate what a run needs, and whether it can work."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.options import ArgumentError, AsJson, RecipePath, Settings, open_recipe
from toolkit.cli.output import print_json
from toolkit.cli.plan_text import GIB, PlanText, describe_durations
from toolkit.cli.plan_text_imagegen import describe_imagegen_plan
from toolkit.cli.plan_text_vlm import describe_plan
from toolkit.errors import ExitCode

if TYPE_CHECKING:
    from toolkit.pipeline.plan import AnyPlan
    from toolkit.planning import Gpu


def plan(
    recipe: RecipePath,
    settings: Settings = None,
    as_json: AsJson = False,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME|GB", help="Plan for another GPU, by name (T4) or memory in GB (16)."),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Try one batch of every stage on a small random model of the real architecture."),
    ] = False,
) -> None:
    """Estimate what a run needs. The exit code is 1 if it cannot work.

    Vision-language model: rows, tokens, optimizer steps, GPU memory, time and disk. Image generator (a recipe
    with the section imagegen): ratings, splits, optimizer steps, generated images, GPU memory, time and disk.
    """
    from toolkit.cli.progress import hide_library_warnings
    from toolkit.pipeline.plan import plan_recipe
    from toolkit.planning import find_gpu
    from toolkit.recipe import for_language_models

    loaded = open_recipe(recipe, settings)
    if deep:
        for_language_models(loaded, "toolkit plan --deep")
    hide_library_warnings()
    found = plan_recipe(loaded, find_gpu() if gpu is None else find_gpu_of(gpu), deep=deep)
    if as_json:
        print_json(found.to_json())
    else:
        print("\n".join(lines(found)))
    raise typer.Exit(ExitCode.FAILED if found.problems else ExitCode.FINISHED)


def lines(plan: "AnyPlan") -> Iterator[str]:
    """Yield the whole plan, as `toolkit plan` prints it."""
    findings = {
        "not checked or not estimated": [f"{what}: {why}" for what, why in plan.unknown.items()],
        "warnings": [f"{one} [{one.code}]" for one in plan.warnings],
        "problems": [f"{one} [{one.code}]" for one in plan.problems],
    }
    yield f"plan of {plan.run}: {', '.join(plan.stages)}"
    for title, section in {**_describe(plan).sections, **findings}.items():
        if listed := list(section):
            yield f"\n{title}"
            yield from (f"  {line}" for line in listed)
    yield "the run cannot work as it is" if plan.problems else "no problem found"


def short_lines(plan: "AnyPlan") -> Iterator[str]:
    """Yield the plan in a few lines, with which `toolkit run` starts."""
    text = _describe(plan)
    yield ": ".join(filter(None, ("plan", ", ".join(plan.stages), text.work)))
    if plan.gpu is None:
        return
    if text.peaks:
        peaks = ", ".join(f"{stage} {peak.total / GIB:.1f}" for stage, peak in text.peaks.items())
        yield f"plan: estimated peaks in GiB: {peaks}. {plan.gpu.name} has {plan.gpu.memory / GIB:.1f}"
    if len(plan.gpu.figures) == 1 and (found := text.durations.get(name := plan.gpu.figures[0].name)):
        yield f"plan: estimated time on {name}: {describe_durations(found)}"


def _describe(plan: "AnyPlan") -> PlanText:
    from toolkit.planning import Plan

    return describe_plan(plan) if isinstance(plan, Plan) else describe_imagegen_plan(plan)


def find_gpu_of(text: str) -> "Gpu":
    """Return the GPU that ``--gpu`` names. Raises ArgumentError if it is unknown."""
    from toolkit.errors import PlanError
    from toolkit.pipeline.plan import parse_gpu

    try:
        return parse_gpu(text)
    except PlanError as error:
        one = error.problems[0]
        raise ArgumentError(one.code, one.rule, place="--gpu", value=one.value, remedy=one.remedy) from None
