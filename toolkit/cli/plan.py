"""`toolkit plan`: estimate what a run needs, and whether it can work. Both kinds of plans become text here."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from toolkit.pipeline.plan import AnyPlan
    from toolkit.planning import Gpu
    from toolkit.planning.disk import Disk
    from toolkit.planning.duration import Range
    from toolkit.planning.memory import Moment

GIB = 2**30
SHOWN = 0.005 * GIB
"""Bytes from which a part of the GPU memory is shown."""
UNITS = ((172_800, 86_400, "days"), (5400, 3600, "h"), (120, 60, "min"), (0, 1, "s"))
"""Smallest number of seconds for a unit, seconds per unit, and its name."""
MEMORY_TITLE = "GPU memory: formulas checked against an allocation trace, not against a GPU"
TIME_TITLE = "time: an estimate from FLOPs, bytes and kernel launches"


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
        print("\n".join(lines(found)))
    raise typer.Exit(1 if found.problems else 0)


@dataclass(frozen=True, slots=True)
class PlanText:
    """Text that depends on the kind of plan.

    Attributes:
        sections: title -> lines, in their order. A section without lines is not shown.
        work: the work of all stages in a few words.
        peaks: stage -> moment that needs the most GPU memory.
        durations: GPU -> stage -> duration.
    """

    sections: Mapping[str, Iterable[str]]
    work: str
    peaks: "Mapping[str, Moment]"
    durations: "Mapping[str, Mapping[str, Range]]"


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
    from toolkit.cli.planned import describe_plan
    from toolkit.cli.planned_imagegen import describe_imagegen_plan
    from toolkit.planning import Plan

    return describe_plan(plan) if isinstance(plan, Plan) else describe_imagegen_plan(plan)


def describe_parts(moment: "Moment", labels: Mapping[str, str]) -> str:
    """Return the parts of a moment in GiB, the largest first."""
    shown = sorted(((size, part) for part, size in moment.parts.items() if size >= SHOWN), reverse=True)
    return ", ".join(f"{labels[part]} {size / GIB:.2f}" for size, part in shown)


def describe_gpu(gpu: "Gpu | None") -> str:
    """Return the GPU that a plan is for."""
    if gpu is None:
        return "this machine has no CUDA device"
    return f"this plan's GPU: {gpu.name}, {gpu.memory / GIB:.1f} GiB"


def describe_durations(found: "Mapping[str, Range]") -> str:
    """Return the durations of stages and their sum."""
    parts = [f"{stage} {span(one.low, one.high)}" for stage, one in found.items()]
    whole = span(sum(one.low for one in found.values()), sum(one.high for one in found.values()))
    return f"{', '.join(parts)}, {whole} in all"


def span(low: float, high: float) -> str:
    """Return a range of seconds as text, in the unit that fits the upper end."""
    size, unit = next((size, unit) for least, size, unit in UNITS if high >= least)
    digits = [f"{value / size:.2g}" if value < 10 * size else f"{value / size:,.0f}" for value in (low, high)]
    return f"{digits[0]} to {digits[1]} {unit}"


def disk_lines(disk: "Disk | None") -> Iterator[str]:
    """Yield the parts of the run folder, their sum, and downloads."""
    if disk is None:
        return
    yield ", ".join(f"{part} {describe_bytes(size)}" for part, size in disk.parts.items())
    yield f"{describe_bytes(disk.needed)} at most, {disk.free / 1e9:.1f} GB free"
    for name, size in disk.downloads.items():
        yield f"download of {name}: {size / 1e9:.1f} GB into {disk.cache}"


def describe_bytes(size: int) -> str:
    """Return a size in GB, or in MB below 0.1 GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _parse_gpu(text: str) -> "Gpu":
    """Return the GPU that ``--gpu`` names. Raises typer.BadParameter if it is unknown."""
    from toolkit.errors import PlanError
    from toolkit.pipeline.plan import parse_gpu

    try:
        return parse_gpu(text)
    except PlanError as error:
        raise typer.BadParameter(str(replace(error.problems[0], place="")), param_hint="--gpu") from None
