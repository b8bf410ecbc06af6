"""A plan of a recipe with [imagegen] as lines of text: in full for `toolkit plan`, in short for `toolkit run`."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from toolkit.cli.planned import GIB, span, titled

if TYPE_CHECKING:
    from toolkit.planning.duration import Range
    from toolkit.planning.imagegen import ImagegenPlan
    from toolkit.planning.imagegen.duration import StageWork
    from toolkit.planning.imagegen.plan import ImagegenStageMemory
    from toolkit.planning.memory.estimate import Moment

NAMES = {
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
LEAST = 0.005 * GIB
"""Bytes from which a part is shown."""


def lines(plan: "ImagegenPlan") -> Iterator[str]:
    """Yield the whole plan."""
    yield f"plan of {plan.run}: {', '.join(plan.stages)}"
    yield from titled("ratings", _ratings(plan))
    yield from titled("work", _work(plan))
    yield from titled("generator", _generator(plan))
    yield from titled("memory on a GPU: formulas checked against an allocation trace, not a GPU", _memory(plan))
    yield from titled("RAM, at most about", _ram(plan))
    yield from titled("time: an estimate from FLOPs, bytes and kernel launches", _time(plan))
    yield from titled("disk", _disk(plan))
    yield from titled("not tried or not estimated", [f"{what}: {why}" for what, why in plan.unknown.items()])
    yield from titled("warnings", [f"{one} [{one.code}]" for one in plan.warnings])
    yield from titled("problems", [f"{one} [{one.code}]" for one in plan.problems])
    yield "the run cannot work as it is" if plan.problems else "no problem found"


def short_lines(plan: "ImagegenPlan") -> Iterator[str]:
    """Yield the lines with which `toolkit run` starts."""
    steps = [f"{name} {one.steps:,} steps" for name, one in plan.work.items() if one.steps]
    images = sum(one.generated for one in plan.work.values())
    yield f"plan: {', '.join(plan.stages)}: {', '.join(steps)}, {images:,} generated images"
    if plan.gpu is None:
        return
    if plan.memory is not None:
        peaks = [f"{name} {one.peak.total / GIB:.1f}" for name, one in plan.memory.items()]
        yield f"plan: estimated peaks in GiB: {', '.join(peaks)}. {plan.gpu.name} has {plan.gpu.memory / GIB:.1f}"
    if plan.time and len(plan.gpu.figures) == 1:
        found = plan.time[plan.gpu.figures[0].name]
        parts = [f"{name} {span(one.low, one.high)}" for name, one in found.items()]
        yield f"plan: estimated time on {plan.gpu.figures[0].name}: {', '.join(parts)}, {_total(found)} in all"


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
        yield f"{work.steps:,} optimizer steps of {work.images_per_step:,} images"
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
        shown = sorted(((size, part) for part, size in moment.parts.items() if size >= LEAST), reverse=True)
        yield "  " + ", ".join(f"{NAMES[part]} {size / GIB:.2f}" for size, part in shown)
    yield from (f"{name}: {_fits(one)}" for name, one in plan.memory.items())
    gpu = plan.gpu
    yield f"this plan's GPU: {gpu.name}, {gpu.memory / GIB:.1f} GiB" if gpu else "this machine has no CUDA device"
    for key, most in plan.largest.items():
        yield f"largest {key} that fits: {most or 'none'}"


def _fits(one: "ImagegenStageMemory") -> str:
    sizes = [str(size) for size, fits in one.fits.items() if fits]
    return f"fits on {', '.join(sizes)} GB" if sizes else f"does not fit on {max(one.fits)} GB"


def _ram(plan: "ImagegenPlan") -> Iterator[str]:
    shown = [f"{part} {_size(size)}" for part, size in plan.ram.items() if size]
    if shown:
        yield ", ".join(shown)


def _time(plan: "ImagegenPlan") -> Iterator[str]:
    from toolkit.planning.imagegen.duration import ASSUMPTIONS

    for gpu, found in (plan.time or {}).items():
        parts = [f"{name} {span(one.low, one.high)}" for name, one in found.items()]
        yield f"{gpu}: {', '.join(parts)}, {_total(found)} in all"
    if plan.time:
        yield from (f"  {text}" for text in ASSUMPTIONS)


def _total(found: "Mapping[str, Range]") -> str:
    return span(sum(one.low for one in found.values()), sum(one.high for one in found.values()))


def _disk(plan: "ImagegenPlan") -> Iterator[str]:
    if plan.disk is None:
        return
    yield ", ".join(f"{part} {_size(size)}" for part, size in plan.disk.parts.items())
    yield f"{_size(plan.disk.needed)} at most, {plan.disk.free / 1e9:.1f} GB free"
    for name, size in plan.disk.downloads.items():
        yield f"download of {name}: {size / 1e9:.1f} GB into {plan.disk.cache}"


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
