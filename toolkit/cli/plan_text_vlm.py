"""The plan of a language model as text."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.cli.plan_text import (
    GIB,
    MEMORY_TITLE,
    TIME_TITLE,
    PlanText,
    describe_gpu,
    describe_parts,
    disk_lines,
    span,
)

if TYPE_CHECKING:
    from toolkit.planning import Plan
    from toolkit.planning.duration import StageTime
    from toolkit.planning.memory import StageMemory
    from toolkit.planning.tokens import Tokens

ARCHITECTURE_TITLE = "check on the real architecture: one batch of every stage"
LABELS = {
    "weights": "weights of the language model",
    "vision_tower": "vision tower",
    "adapter": "adapter",
    "reference": "reference model of the KL term or of DPO",
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


def describe_plan(plan: "Plan") -> PlanText:
    """Return the text of a plan."""
    return PlanText(
        sections={
            "data": _data(plan),
            "tokens per row": _tokens(plan.tokens) if plan.tokens else (),
            "work": _work(plan),
            "model": _model(plan),
            MEMORY_TITLE: _memory(plan),
            TIME_TITLE: _time(plan),
            ARCHITECTURE_TITLE: _architecture(plan),
            "disk": disk_lines(plan.disk),
            "versions": _versions(plan),
        },
        work=", ".join(_short_work(plan)),
        peaks={stage: one.estimate.peak for stage, one in (plan.memory or {}).items()},
        durations={gpu: {stage: one.total for stage, one in found.items()} for gpu, found in (plan.time or {}).items()},
    )


def _short_work(plan: "Plan") -> Iterator[str]:
    for stage, work in (plan.work or {}).items():
        if work.steps:
            yield f"{stage} {work.steps:,} optimizer steps"
    if plan.tokens is not None and plan.tokens.rows:
        total = plan.tokens.percentiles("total")
        about = "" if plan.tokens.exact else "about "
        yield f"{about}{total['median']:,} tokens per row, at most {total['max']:,}"
    if plan.disk is not None:
        yield f"{plan.disk.needed / 1e9:.1f} GB of disk"


def _data(plan: "Plan") -> Iterator[str]:
    if plan.data is None:
        return
    rows = ", ".join(f"{split} {count:,}" for split, count in plan.data.rows.items() if count)
    yield f"rows: {rows}" + (" (synthetic data, generated when the run starts)" if plan.data.synthetic else "")
    yield f"unusable rows: {sum(one.count for one in plan.data.dropped):,}, leaks: {len(plan.data.leaks)}"
    yield from plan.data.warnings


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
            unit = "prompts" if work.completions else "pairs" if name == "dpo" else "rows"
            parts.append(f"{work.steps:,} optimizer steps of {work.samples:,} {unit}")
        if work.completions:
            parts.append(f"{work.completions:,} completions per step")
        if work.extra_rollouts:
            most = work.extra_rollouts * work.completions
            parts.append(f"at most {most:,} more for zero-variance groups (grpo.resample)")
        if work.answers:
            parts.append(f"{work.answers:,} completions of at most {work.answer_tokens:,} tokens")
        if work.validations:
            parts.append(f"{work.validations:,} validations of {work.validated:,} rows")
        yield f"{name}: {', '.join(parts)}"
    if plan.packing is not None and plan.packing.reasons:
        yield f"grpo: prompts are not packed: {'; '.join(plan.packing.reasons)}"
    elif plan.packing is not None:
        yield f"grpo: a prompt and {plan.packing.completions} of its completions are packed into one row"


def _model(plan: "Plan") -> Iterator[str]:
    model, known = plan.model, plan.model.architecture
    where = {"folder": "its folder", "cache": "the Hub cache", "shipped": "this package"}
    if known is not None and model.config is not None:
        yield (
            f"{model.name}: {known.parameters:,} parameters, {known.vision_parameters:,} of them in the vision "
            f"tower (configuration from {where[model.config.origin]})"
        )
    else:
        yield f"{model.name}: the configuration is not available"
    if model.trained_parameters is not None:
        yield f"trained: {model.trained_parameters:,} parameters, precision {model.precision}"
    if model.repository is not None:
        yield f"Unsloth loads {model.repository.name}, which has some layers in 16 bits"
    if model.base is not None:
        state = {"folder": "in a folder", "cache": "in the Hub cache", "reachable": "will be downloaded from the Hub"}
        yield f"weights: {state.get(model.base.state, 'not available: ' + model.base.reason)}"


def _memory(plan: "Plan") -> Iterator[str]:
    for name, one in (plan.memory or {}).items():
        peak = one.estimate.peak
        yield f"{name}, {one.precision}: about {peak.total / GIB:.1f} GiB ({peak.name})"
        yield f"  {describe_parts(peak, LABELS)}"
        yield from (f"  {text}" for text in _gpu_sizes(one))
        without = one.without_bf16.peak.total
        if without > peak.total:
            yield f"  on a GPU without bfloat16 (T4, V100): about {without / GIB:.1f} GiB"
    if plan.memory:
        yield describe_gpu(plan.gpu)


def _gpu_sizes(one: "StageMemory") -> Iterator[str]:
    fits = [f"{size}" for size, changes in one.changes.items() if changes == ()]
    if fits:
        yield f"fits on {', '.join(fits)} GB"
    for size, changes in one.changes.items():
        if changes is None:
            yield f"does not fit on {size} GB with any known setting"
        elif changes:
            yield f"would fit on {size} GB with {', '.join(changes)}"


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
    more = f", {span(one.validation.low, one.validation.high)} per validation" if one.validations else ""
    return f"{name} {span(one.step.low, one.step.high)} per step{more}, {span(one.total.low, one.total.high)} in total"


def _architecture(plan: "Plan") -> Iterator[str]:
    """Yield the parts of the check on the real architecture with their durations."""
    found = plan.architecture_check
    if found is None or not (found.tried or found.failures):
        return
    yield ", ".join(f"{part} {seconds:.1f} s" for part, seconds in found.tried.items()) or "nothing succeeded"
    if found.failures:
        yield f"failed: {', '.join(one.part for one in found.failures)}"
    size = f"{found.parameters:,} random parameters, 32 bits, on the CPU with the hf backend"
    yield size + (" (an earlier check of the same model, recipe and versions)" if found.cached else "")


def _versions(plan: "Plan") -> Iterator[str]:
    if not plan.versions:
        yield "the tested versions"
    for package, one in plan.versions.items():
        yield f"{package} {one['installed']}, tested with {one['tested']}"
