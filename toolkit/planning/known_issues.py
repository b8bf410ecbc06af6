"""Warnings of what has cost others their runs, where it applies. Thread numbers are those of GitHub."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from toolkit.errors import Problem
from toolkit.models.model_paths import writes_merged
from toolkit.planning.architecture import Architecture
from toolkit.planning.findings import Finding, warning
from toolkit.planning.gpu import Gpu
from toolkit.planning.tokens import Tokens
from toolkit.recipe import Recipe
from toolkit.tasks import TASKS


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a run; None: it is not."""

    recipe: Recipe
    architecture: Architecture | None
    tokens: Tokens | None
    gpu: Gpu | None


def find_warnings(known: Known) -> list[Finding]:
    """All warnings that apply."""
    return [finding for check in _CHECKS for finding in check(known)]


def _no_bfloat16(known: Known) -> Iterator[Finding]:
    """unsloth#2040, #2818: Gemma 3 overflows in float16."""
    if known.gpu is None or known.gpu.bf16 or known.recipe.model.precision == "32bit":
        return
    rule = "the GPU does not support bfloat16, so unquantized weights are float32, which is slower and doubles their "
    rule += "memory (included in the estimate). MedGemma and Gemma 3 overflow in float16"
    remedy = "Use a smaller model, or a GPU of the Ampere generation or later."
    yield warning(Problem("plan.no_bfloat16", rule, known.gpu.name, remedy=remedy))


def _several_cards(known: Known) -> Iterator[Finding]:
    """unsloth#431, #2467."""
    if known.gpu is not None and known.gpu.count > 1:
        rule = "the run uses only one of the available GPUs"
        remedy = "Run `accelerate launch --num_processes 2 -m toolkit run RECIPE` to use two."
        yield warning(Problem("model.one_gpu_used", rule, "GPU", known.gpu.count, remedy))


def _vision_adapter(known: Known) -> Iterator[Finding]:
    """vllm#21500, #41754."""
    recipe = known.recipe
    exports_adapter_alone = recipe.export is not None and not writes_merged(recipe)
    if recipe.lora.vision and recipe.model.tuning == "lora" and recipe.model.name != "tiny" and exports_adapter_alone:
        rule = "vLLM does not load an adapter with vision-tower layers, or silently ignores them"
        remedy = 'Add "merged" to export.to to serve the model with vLLM.'
        yield warning(Problem("plan.vision_adapter_not_servable", rule, "[lora] vision", remedy=remedy))


def _kl_reference(known: Known) -> Iterator[Finding]:
    recipe = known.recipe
    if (
        recipe.grpo is not None
        and recipe.grpo.beta > 0
        and (recipe.sft is not None or recipe.model.adapter is not None)
    ):
        rule = "the KL term uses the adapter that GRPO starts from as its reference, not the base model. "
        rule += "A second copy of the adapter is kept, and every optimizer step needs one more forward pass"
        yield warning(Problem("plan.kl_reference_is_adapter", rule, "[grpo] beta"))


def _flat_rewards(known: Known) -> Iterator[Finding]:
    """trl#3857, #3452: groups whose answers all earn the same teach nothing."""
    recipe = known.recipe
    if recipe.grpo is None:
        return
    counted = {name for name, weight in recipe.reward_weights.items() if weight > 0}
    if counted and counted <= TASKS[recipe.dataset.task].all_or_nothing:
        rule = "every weighted reward is all or nothing, and zero-variance groups have no gradient"
        remedy = "Add weight to a reward with partial credit. The probe before step 1 reports these groups."
        yield warning(Problem("plan.rewards_all_or_nothing", rule, "[rewards]", sorted(counted), remedy))


def _answers_cut_off(known: Known) -> Iterator[Finding]:
    """trl#5697, ms-swift#4950: answers that run into the limit earn nothing."""
    if known.tokens is None:
        return
    usual = known.tokens.spread("answer")["p95"]
    for name, section in (("grpo", known.recipe.grpo), ("evaluate", known.recipe.evaluate)):
        if section is not None and section.max_completion_tokens < usual:
            rule = f"should be at least {usual}, the 95th percentile of the tokens of the reference answers"
            place, value = f"[{name}] max_completion_tokens", section.max_completion_tokens
            remedy = "Raise it. Longer answers are truncated and count as wrong."
            yield warning(Problem("plan.answers_cut_off", rule, place, value, remedy))


def _no_checkpointing(known: Known) -> Iterator[Finding]:
    recipe = known.recipe
    for name, section in (("sft", recipe.sft), ("grpo", recipe.grpo)):
        on_a_card = known.gpu is not None and recipe.model.name != "tiny"
        if section is not None and not section.gradient_checkpointing and on_a_card:
            rule, place = "every layer keeps its activations", f"[{name}] gradient_checkpointing"
            remedy = "Set it to true to free most of their memory for about a third more time."
            yield warning(Problem("plan.no_gradient_checkpointing", rule, place, False, remedy))


def _rounded_steps(known: Known) -> Iterator[Finding]:
    model = known.recipe.model
    if model.tuning == "full" and model.precision == "16bit":
        rule = "full fine-tuning in 16 bits loses updates that are smaller than the rounding of the weights"
        remedy = 'Set precision = "32bit", or tuning = "lora".'
        yield warning(Problem("plan.small_updates_lost", rule, "[model] precision", model.precision, remedy))


def _remote_code(known: Known) -> Iterator[Finding]:
    if known.recipe.model.trust_remote_code:
        rule = "Python code of the model's authors runs with your permissions"
        yield warning(Problem("plan.remote_code", rule, "[model] trust_remote_code"))


_CHECKS: tuple[Callable[[Known], Iterator[Finding]], ...] = (
    _no_bfloat16,
    _several_cards,
    _vision_adapter,
    _kl_reference,
    _flat_rewards,
    _answers_cut_off,
    _no_checkpointing,
    _rounded_steps,
    _remote_code,
)
