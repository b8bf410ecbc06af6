"""Whether the backend that the recipe names can do what it asks: Unsloth, and vLLM through it."""

from collections.abc import Iterator
from importlib.util import find_spec

from toolkit.errors import ModelError, Problem
from toolkit.models import backend_name
from toolkit.models.unsloth.limits import unsupported_reasons
from toolkit.models.vllm import ARCHITECTURES, Machine, vllm_unsupported_reasons
from toolkit.planning.findings import Finding, from_error
from toolkit.planning.gpu import Gpu
from toolkit.recipe import Recipe


def judge_backend(recipe: Recipe, gpu: Gpu | None, model_type: str | None, pictures: int) -> Iterator[Finding]:
    """What Unsloth or vLLM would refuse once the run has begun.

    Args:
        recipe: the run.
        gpu: the card to plan for.
        model_type: of the model's configuration; None: it is not known, and nothing is said of it.
        pictures: the most pictures that a training prompt has.
    """
    here = gpu is None or gpu.here
    if recipe.model.backend == "unsloth":
        if here:
            yield from _not_here(recipe)
        for reason in unsupported_reasons(recipe):
            rule = f"Unsloth cannot train this recipe: {reason}"
            remedy = 'Change the recipe, or set backend = "hf".'
            yield Finding(Problem("model.unsloth_cannot_train", rule, "[model] backend", remedy=remedy))
    if recipe.grpo is None or recipe.grpo.rollouts != "vllm":
        return
    reasons = vllm_unsupported_reasons(recipe, _machine(gpu), model_type or min(ARCHITECTURES), pictures)
    if here and recipe.model.backend == "auto" and backend_name(recipe.model) != "unsloth":
        reasons.append("it goes through Unsloth, and the backend here is hf")
    if reasons:
        rule = f"vLLM cannot generate the completions: {'; '.join(reasons)}"
        remedy = 'Set rollouts = "transformers".'
        yield Finding(Problem("training.vllm_unsupported", rule, "[grpo] rollouts", remedy=remedy))


def _not_here(recipe: Recipe) -> Iterator[Finding]:
    try:
        backend_name(recipe.model)
    except ModelError as error:
        yield from_error(error, "[model] backend")


def _machine(gpu: Gpu | None) -> Machine:
    """The card as vLLM would find it; a described one is taken to be of the Ampere generation, or of
    the Turing generation if it lacks bfloat16."""
    if gpu is not None and gpu.here:
        return Machine.here()
    installed = find_spec("vllm") is not None
    if gpu is None:
        return Machine(0.0, (0, 0), installed)
    return Machine(gpu.memory / 1e9, (8, 0) if gpu.bf16 else (7, 5), installed)
