"""Format a plan as lines of text: all of it for `toolkit plan`, a few lines for `toolkit run`."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.planning import Plan
    from toolkit.planning.duration import StageTime
    from toolkit.planning.plan import StageMemory
    from toolkit.planning.tokens import Tokens

GIB = 2**30
UNITS = ((172_800, 86_400, "days"), (5400, 3600, "h"), (120, 60, "min"), (0, 1, "s"))
"""Smallest number of seconds for a unit, seconds per unit, and its name."""
NAMES = {
    "weights": "weights of the language model",
    "vision_tower": "vision tower",
    "adapter": "adapter",
    "reference": "reference model of the KL term",
    "optimizer": "optimizer state",
    "gradients": "gradients",
    "activations": "stored activations",
    "layer": "activations of one layer",
    "logits": "logits",
    "images": "vision tower's forward pass",
    "kv_cache": "KV cache",
    "prefill": "prefill",
    "decoding": "one layer of a decoding step",
    "sampling": "sampling",
    "inputs": "pixels",
    "fragmentation": "fragmentation (traced)",
    "context": "CUDA context (assumed)",
}
"""Part of a stage's GPU memory -> its label."""


def lines(plan: "Plan") -> Iterator[str]:
    """Yield the whole plan."""
    yield f"plan of {plan.run}: {', '.join(plan.stages)}"
    yield from titled("data", _data(plan))
    yield from titled("tokens per row", _tokens(plan.tokens) if plan.tokens else ())
    yield from titled("work", _work(plan))
    yield from titled("model", _model(plan))
    yield from titled("GPU memory: formulas checked against an allocation trace, not against a GPU", _memory(plan))
    yield from titled("time: an estimate from FLOPs, bytes and kernel launches", _time(plan))
    yield from titled("disk", _disk(plan))
    yield from titled("versions", _versions(plan))
    yield from titled("not estimated", (f"{what}: {why}" for what, why in plan.unknown.items()))
    yield from titled("warnings", [f"{one} [{one.code}]" for one in plan.warnings])
    yield from titled("problems", [f"{one} [{one.code}]" for one in plan.problems])
    yield "the run cannot work as it is" if plan.problems else "no problem found"


def short_lines(plan: "Plan") -> Iterator[str]:
    """Yield the lines with which `toolkit run` starts."""
    parts = [f"{name} {work.steps:,} optimizer steps" for name, work in (plan.work or {}).items() if work.steps]
    if plan.tokens is not None and plan.tokens.rows:
        total = plan.tokens.percentiles("total")
        about = "" if plan.tokens.exact else "about "
        parts.append(f"{about}{total['median']:,} tokens per row, at most {total['max']:,}")
    if plan.disk is not None:
        parts.append(f"{plan.disk.needed / 1e9:.1f} GB of disk")
    yield f"plan: {', '.join(plan.stages)}: {', '.join(parts)}" if parts else f"plan: {', '.join(plan.stages)}"
    if plan.gpu is not None and plan.memory is not None:
        peaks = [f"{name} {one.estimate.peak.total / GIB:.1f}" for name, one in plan.memory.items()]
        yield f"plan: estimated peaks in GiB: {', '.join(peaks)}. {plan.gpu.name} has {plan.gpu.memory / GIB:.1f}"
    yield from _short_time(plan)


def _short_time(plan: "Plan") -> Iterator[str]:
    """Yield the estimated time on the plan's GPU."""
    figures = () if plan.gpu is None else plan.gpu.figures
    if plan.time and len(figures) == 1:
        found = plan.time[figures[0].name]
        parts = [f"{name} {span(one.total.low, one.total.high)}" for name, one in found.items()]
        yield f"plan: estimated time on {figures[0].name}: {', '.join(parts)}"


def titled(title: str, found: Iterable[str]) -> Iterator[str]:
    """Yield an empty line, the title and the indented lines, or nothing if there are no lines."""
    listed = list(found)
    if listed:
        yield f"\n{title}"
        yield from (f"  {line}" for line in listed)


def _data(plan: "Plan") -> Iterator[str]:
    data = plan.data
    if data is None:
        return
    rows = ", ".join(f"{name} {count:,}" for name, count in data["rows"].items() if count)
    yield f"rows: {rows}" + (" (synthetic data, generated when the run starts)" if data["practice"] else "")
    dropped = sum(one["count"] for one in data["dropped"])
    yield f"unusable rows: {dropped:,}, leaks: {len(data['leaks'])}"
    yield from data["announcements"]


def _tokens(tokens: "Tokens") -> Iterator[str]:
    if not tokens.rows:
        yield f"no rows: GPU memory is estimated for a row of {tokens.limit:,} tokens (model.max_tokens) with one image"
        return
    how = "counted" if tokens.exact else "estimated"
    yield f"{len(tokens.lengths):,} of {tokens.rows:,} rows {how}, at most {tokens.limit:,} tokens (model.max_tokens)"
    for part, name in (("text", "prompt text"), ("images", "images"), ("answer", "answer"), ("total", "all")):
        found = tokens.percentiles(part)
        yield f"{name:<12} median {found['median']:>6,}   95 % {found['p95']:>6,}   max {found['max']:>6,}"


def _work(plan: "Plan") -> Iterator[str]:
    for name, work in (plan.work or {}).items():
        parts = []
        if work.steps:
            unit = "prompts" if work.completions else "rows"
            parts.append(f"{work.steps:,} optimizer steps of {work.samples:,} {unit}")
        if work.completions:
            parts.append(f"{work.completions:,} completions per step")
        if work.answers:
            parts.append(f"{work.answers:,} completions of at most {work.answer_tokens:,} tokens")
        yield f"{name}: {', '.join(parts)}"


def _model(plan: "Plan") -> Iterator[str]:
    model = plan.architecture
    where = {"folder": "its folder", "cache": "the Hub cache", "shipped": "this package"}
    if model is not None and plan.configuration is not None:
        yield (
            f"{plan.model_name}: {model.parameters:,} parameters, {model.vision_parameters:,} of them in the vision "
            f"tower (configuration from {where[plan.configuration]})"
        )
    else:
        yield f"{plan.model_name}: the configuration is not available"
    if plan.trained_parameters is not None:
        yield f"trained: {plan.trained_parameters:,} parameters, precision {plan.precision}"
    if plan.repository is not None:
        yield f"Unsloth loads {plan.repository.name}, which has some layers in 16 bits"
    if plan.base is not None:
        state = {"folder": "in a folder", "cache": "in the Hub cache", "reachable": "will be downloaded from the Hub"}
        yield f"weights: {state.get(plan.base.state, 'not available: ' + plan.base.reason)}"


def _memory(plan: "Plan") -> Iterator[str]:
    for name, one in (plan.memory or {}).items():
        peak = one.estimate.peak
        yield f"{name}, {one.precision}: about {peak.total / GIB:.1f} GiB ({peak.name})"
        shown = sorted(((size, part) for part, size in peak.parts.items() if size >= 0.005 * GIB), reverse=True)
        yield "  " + "; ".join(f"{NAMES[part]} {size / GIB:.2f}" for size, part in shown)
        yield from (f"  {text}" for text in _gpu_sizes(one))
        without = one.without_bf16.peak.total
        if without > peak.total:
            yield f"  on a GPU without bfloat16 (T4, V100): about {without / GIB:.1f} GiB"
    if plan.memory:
        gpu = plan.gpu
        yield f"this plan's GPU: {gpu.name}, {gpu.memory / GIB:.1f} GiB" if gpu else "this machine has no CUDA device"


def _gpu_sizes(one: "StageMemory") -> Iterator[str]:
    fits = [f"{size}" for size, knobs in one.knobs.items() if knobs == ()]
    if fits:
        yield f"fits on {', '.join(fits)} GB"
    for size, knobs in one.knobs.items():
        if knobs is None:
            yield f"does not fit on {size} GB with any known setting"
        elif knobs:
            yield f"would fit on {size} GB with {', '.join(knobs)}"


def _time(plan: "Plan") -> Iterator[str]:
    """Yield one line per GPU, then the assumptions."""
    from toolkit.planning.duration import ASSUMPTIONS

    for gpu, found in (plan.time or {}).items():
        yield f"{gpu}: {', '.join(_stage_time(name, one) for name, one in found.items())}"
    if plan.time:
        yield from (f"  {text}" for text in ASSUMPTIONS)


def _stage_time(name: str, one: "StageTime") -> str:
    if name == "evaluate":
        return f"{span(one.step.low, one.step.high)} for each of {one.steps} evaluations"
    return f"{name} {span(one.step.low, one.step.high)} per step, {span(one.total.low, one.total.high)} in total"


def span(low: float, high: float) -> str:
    """Return a range of seconds as text, in the unit that fits the upper end."""
    size, unit = next((size, unit) for least, size, unit in UNITS if high >= least)
    digits = [f"{value / size:.2g}" if value < 10 * size else f"{value / size:,.0f}" for value in (low, high)]
    return f"{digits[0]} to {digits[1]} {unit}"


def _disk(plan: "Plan") -> Iterator[str]:
    if plan.disk is not None:
        yield ", ".join(f"{part} {size / 1e9:.2f} GB" for part, size in plan.disk.parts.items())
        yield f"{plan.disk.needed / 1e9:.1f} GB at most, {plan.disk.free / 1e9:.1f} GB free"
        for name, size in plan.disk.downloads.items():
            yield f"download of {name}: {size / 1e9:.1f} GB into {plan.disk.cache}"


def _versions(plan: "Plan") -> Iterator[str]:
    if not plan.versions:
        yield "the tested versions"
    for package, one in plan.versions.items():
        yield f"{package} {one['installed']}, tested with {one['tested']}"
