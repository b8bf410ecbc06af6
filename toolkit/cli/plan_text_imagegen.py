"""The plan of an image generator as text."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.cli.plan_text import (
    GIB,
    MEMORY_TITLE,
    TIME_TITLE,
    PlanText,
    describe_bytes,
    describe_durations,
    describe_gpu,
    describe_parts,
    disk_lines,
)

if TYPE_CHECKING:
    from toolkit.planning.imagegen import ImagegenPlan
    from toolkit.planning.imagegen.duration import StageWork
    from toolkit.planning.imagegen.plan import ImagegenStageMemory
    from toolkit.planning.memory import Moment

LABELS = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "lora": "LoRA",
    "optimizer": "optimizer state",
    "gradients": "gradients",
    "scorers": "scoring models",
    "activations": "activations",
    "layer": "backward pass of one block",
    "decoding": "activations of the VAE",
    "encoding": "activations of the VAE",
    "scoring": "activations of the scoring models",
    "prompts": "encoded prompts",
    "fragmentation": "fragmentation (traced)",
    "context": "CUDA context (assumed)",
}
"""Part of a moment's GPU memory -> its label."""


def describe_imagegen_plan(plan: "ImagegenPlan") -> PlanText:
    """Return the text of a plan."""
    steps = [f"{stage} {one.steps:,} steps" for stage, one in plan.work.items() if one.steps]
    images = sum(one.generated for one in plan.work.values())
    return PlanText(
        sections={
            "ratings": _ratings(plan),
            "work": _work(plan),
            "generator": _generator(plan),
            MEMORY_TITLE: _memory(plan),
            "RAM, at most about": _ram(plan),
            TIME_TITLE: _time(plan),
            "disk": disk_lines(plan.disk),
        },
        work=", ".join((*steps, f"{images:,} generated images")),
        peaks={stage: one.peak for stage, one in (plan.memory or {}).items()},
        durations=plan.time or {},
    )


def _ratings(plan: "ImagegenPlan") -> Iterator[str]:
    facts = plan.ratings
    if facts is None:
        return
    made = " (synthetic, generated when the run begins)" if facts.synthetic else ""
    yield f"{facts.rows:,} rows, {facts.images:,} images{made}"
    if not facts.synthetic:
        lost = sum(one.count for one in facts.dropped)
        yield f"unusable rows: {lost:,}. Distinct prompts: {len(facts.prompts):,}"
    for name, split in facts.splits.items():
        levels = f", of each level from the worst: {', '.join(map(str, split.levels))}" if split.levels else ""
        yield f"{name:<17} {split.images:>6,} images, {split.ratings:>6,} ratings{levels}"


def _work(plan: "ImagegenPlan") -> Iterator[str]:
    for name, one in plan.work.items():
        if parts := list(_stage(one)):
            yield f"{name}: {', '.join(parts)}"


def _stage(work: "StageWork") -> Iterator[str]:
    if work.rounds:
        yield f"{work.rounds:,} rounds"
    if work.steps:
        images = f" of {work.images_per_step:,} images" if work.images_per_step else ""
        yield f"{work.steps:,} optimizer steps{images}"
    if work.generated:
        unit = "evaluation" if work.evaluations == 1 else "evaluations"
        yield f"{work.generated:,} generated images ({work.evaluations} {unit})"
    if work.updated and work.rounds:
        yield f"{work.updated:,} passes forward and backward of one image at one denoising step"


def _generator(plan: "ImagegenPlan") -> Iterator[str]:
    one = plan.generator
    where = {
        "shipped": "in this package",
        "folder": "in a folder",
        "cache": "in the Hub's cache",
        "reachable": "to be downloaded from the Hub",
        "missing": "missing",
    }
    yield f"{one.name}: {where[one.state]}, {one.precision}, {one.size} pixels"
    if one.parameters is not None and one.trained_parameters is not None:
        yield f"{one.parameters:,} parameters, a LoRA of {one.trained_parameters:,}"


def _memory(plan: "ImagegenPlan") -> Iterator[str]:
    """Yield each moment with the stages that have it, the largest first."""
    if plan.memory is None:
        return
    stages: dict[str, list[str]] = {}
    moments: dict[str, Moment] = {}
    for name, one in plan.memory.items():
        for moment in one.moments:
            # Rollouts of a round and of an evaluation have different batch sizes.
            if moment.name not in moments or moment.total > moments[moment.name].total:
                moments[moment.name] = moment
            if name not in (listed := stages.setdefault(moment.name, [])):
                listed.append(name)
    for moment in sorted(moments.values(), key=lambda one: -one.total):
        yield f"{moment.name} ({', '.join(stages[moment.name])}): about {moment.total / GIB:.1f} GiB"
        yield f"  {describe_parts(moment, LABELS)}"
    yield from (f"{name}: {_fits(one)}" for name, one in plan.memory.items())
    yield describe_gpu(plan.gpu)
    for key, most in plan.largest.items():
        yield f"largest {key} that fits: {most or 'none'}"


def _fits(one: "ImagegenStageMemory") -> str:
    sizes = [str(size) for size, fits in one.fits.items() if fits]
    return f"fits on {', '.join(sizes)} GB" if sizes else f"does not fit on {max(one.fits)} GB"


def _ram(plan: "ImagegenPlan") -> Iterator[str]:
    shown = [f"{part} {describe_bytes(size)}" for part, size in plan.ram.items() if size]
    if shown:
        yield ", ".join(shown)


def _time(plan: "ImagegenPlan") -> Iterator[str]:
    from toolkit.planning.imagegen.duration import ASSUMPTIONS

    for gpu, found in (plan.time or {}).items():
        yield f"{gpu}: {describe_durations(found)}"
    if plan.time:
        yield from (f"  {text}" for text in ASSUMPTIONS)
