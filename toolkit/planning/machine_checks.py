"""Problems of a plan with the machine: GPU memory, libraries and backends."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from toolkit.errors import (
    ModelError,
    Problem,
)
from toolkit.models import backend_name
from toolkit.models.families import VLLM
from toolkit.models.packing import not_packed_reasons
from toolkit.models.unsloth.preload import unsupported_reasons
from toolkit.models.vllm import Machine, vllm_unsupported_reasons
from toolkit.planning.facts import Check, Facts
from toolkit.planning.findings import PlanFinding, from_error, warning
from toolkit.planning.gpu import GIB, Gpu
from toolkit.planning.memory import UNPACKED, StageMemory
from toolkit.planning.stages import Stage
from toolkit.planning.tokens import Rows


def _check_bitsandbytes(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings for settings that need bitsandbytes, which is slow on a CPU and may not be installed."""
    recipe = facts.recipe
    if facts.gpu is not None:
        return
    wanted: dict[str, str] = {}
    if recipe.model.precision in ("4bit", "8bit"):
        wanted["[model] precision"] = recipe.model.precision
    for name, section in recipe.training.items():
        if section.optimizer.endswith("8bit"):
            wanted[f"[{name}] optimizer"] = section.optimizer
    installed = find_spec("bitsandbytes") is not None
    for place, value in wanted.items():
        if not installed:
            rule, remedy = "needs bitsandbytes, which is not installed", "Install it: pip install bitsandbytes."
            yield PlanFinding(Problem("model.library_missing", rule, place, value, remedy))
        elif value.startswith("paged_"):
            rule = f'needs a CUDA device, so "{value.removeprefix("paged_")}" is used, which makes the same updates'
            remedy = "Use a machine with a GPU, or the other optimizer."
            yield warning(Problem("training.optimizer_not_paged", rule, place, value, remedy))
        elif place == "[model] precision":
            rule = "quantized weights are slow on a CPU, and no CUDA device is available"
            remedy = "Use a machine with a GPU. `toolkit plan RECIPE --gpu 16` plans for one."
            yield warning(Problem("model.quantized_on_cpu", rule, place, value, remedy))


def _check_packing(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding if the recipe requests packed prompts, which its model or settings do not allow."""
    if facts.recipe.grpo is None or facts.config is None:
        return
    try:
        not_packed_reasons(facts.recipe, facts.backend, facts.config.model_type)
    except ModelError as error:
        yield from_error(error, "[grpo] packing")


def check_gpu_memory(memory: Mapping[Stage, StageMemory], gpu: Gpu | None) -> Iterator[PlanFinding]:
    """Yield a finding for each stage whose estimate exceeds the GPU memory, with settings that make it fit."""
    for name, stage in memory.items():
        peak = stage.estimate.peak
        if gpu is None or peak.total <= gpu.memory:
            continue
        rule = f"the estimated peak in GiB ({peak.name}) must fit the {gpu.memory / GIB:.1f} GiB of {gpu.name}"
        place, value, remedy = f"memory of {name}", round(peak.total / GIB, 1), _describe_changes(stage.changes_here)
        if stage.changes_here == (UNPACKED,):
            remedy = "Change nothing: after an out-of-memory error, fewer completions are in a row."
            yield warning(Problem("plan.packed_row_too_long", rule, place, value, remedy))
            continue
        yield PlanFinding(Problem("plan.gpu_memory_too_small", rule, place, value, remedy), certain=False)


def _describe_changes(changes: tuple[str, ...] | None) -> str:
    """Return the changes that make a stage fit, as a sentence."""
    if changes is None:
        return "Use a smaller model or a larger GPU: no known setting makes the stage fit."
    return f"Set {', '.join(changes)} to make it fit."


def _check_backend(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings for settings that Unsloth would reject after the run has started."""
    recipe = facts.recipe
    if recipe.model.backend != "unsloth":
        return
    if facts.gpu is None or facts.gpu.here:
        try:
            backend_name(recipe.model)
        except ModelError as error:
            yield from_error(error, "[model] backend")
    for reason in unsupported_reasons(recipe):
        rule = f"Unsloth cannot train this recipe: {reason}"
        remedy = 'Change the recipe, or set backend = "hf".'
        yield PlanFinding(Problem("model.unsloth_cannot_train", rule, "[model] backend", remedy=remedy))


def _check_vllm(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding for settings that vLLM would reject after the run has started."""
    recipe, gpu = facts.recipe, facts.gpu
    if recipe.grpo is None or recipe.grpo.rollouts != "vllm":
        return
    model_type = facts.config.model_type if facts.config else ""
    images = 1  # unknown
    if isinstance(facts.rows, Rows):
        images = max((len(sample.images) for sample in facts.rows.data.train), default=1)
    reasons = vllm_unsupported_reasons(recipe, _machine(gpu), model_type or min(VLLM), images)
    here = gpu is None or gpu.here
    if here and recipe.model.backend == "auto" and backend_name(recipe.model) != "unsloth":
        reasons.append("it goes through Unsloth, and the backend here is hf")
    if reasons:
        rule = f"vLLM cannot generate the completions: {'; '.join(reasons)}"
        remedy = 'Set rollouts = "transformers".'
        yield PlanFinding(Problem("training.vllm_unsupported", rule, "[grpo] rollouts", remedy=remedy))


def _machine(gpu: Gpu | None) -> Machine:
    """Return the GPU as vLLM would find it.

    A described GPU counts as an Ampere GPU, or as a Turing GPU if it lacks bfloat16.
    """
    if gpu is not None and gpu.here:
        return Machine.here()
    installed = find_spec("vllm") is not None
    if gpu is None:
        return Machine(0.0, (0, 0), installed)
    return Machine(gpu.memory / 1e9, (8, 0) if gpu.bf16 else (7, 5), installed)


MACHINE_CHECKS: tuple[Check, ...] = (_check_bitsandbytes, _check_backend, _check_vllm, _check_packing)
