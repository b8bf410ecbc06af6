"""Warnings of a plan: settings with which a run works, but not as expected. Numbers of issues are those of GitHub."""

from collections.abc import Iterator

from toolkit.errors import (
    Problem,
)
from toolkit.models.families import family_of
from toolkit.models.model_paths import writes_merged
from toolkit.planning.facts import Check, Facts
from toolkit.planning.findings import PlanFinding, warning
from toolkit.planning.gpu import GIB
from toolkit.planning.stages import planned_precision
from toolkit.tasks import TASKS


def _check_quantization(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a warning for a family whose authors or trainers advise against 4-bit base weights."""
    recipe, config = facts.recipe, facts.config
    reason = "" if config is None else family_of(config.model_type).not_4bit
    if reason and planned_precision(recipe.model, cuda=facts.gpu is not None) == "4bit":
        remedy = 'Set precision = "16bit", with a smaller model if it does not fit.'
        yield warning(Problem("plan.4bit_discouraged", reason, "[model] precision", recipe.model.precision, remedy))


def _no_bfloat16(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a warning for a GPU on which Gemma 3 overflows in float16 (unsloth#2040, #2818)."""
    if facts.gpu is None or facts.gpu.bf16 or facts.recipe.model.precision == "32bit":
        return
    rule = "the GPU does not support bfloat16, so unquantized weights are float32, which is slower and doubles their "
    rule += "memory (included in the estimate). MedGemma and Gemma 3 overflow in float16"
    remedy = "Use a smaller model, or a GPU of the Ampere generation or later."
    yield warning(Problem("plan.no_bfloat16", rule, facts.gpu.name, remedy=remedy))


def _several_gpus(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a warning if some GPUs are not used (unsloth#431, #2467)."""
    if facts.gpu is not None and facts.gpu.count > 1:
        rule = "the run uses only one of the available GPUs"
        remedy = "Run `accelerate launch --num_processes 2 -m toolkit run RECIPE` to use two."
        yield warning(Problem("model.one_gpu_used", rule, "GPU", facts.gpu.count, remedy))


def _vision_adapter(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a warning for adapters that vLLM does not serve (vllm#21500, #41754)."""
    recipe = facts.recipe
    exports_adapter_alone = recipe.export is not None and not writes_merged(recipe)
    if recipe.lora.vision and recipe.model.tuning == "lora" and recipe.model.name != "tiny" and exports_adapter_alone:
        rule = "vLLM does not load an adapter with vision-tower layers, or silently ignores them"
        remedy = 'Add "merged" to export.to to serve the model with vLLM.'
        yield warning(Problem("plan.vision_adapter_not_servable", rule, "[lora] vision", remedy=remedy))


def _dora(facts: Facts) -> Iterator[PlanFinding]:
    """Yield warnings for DoRA: what the estimates leave out, and programs that do not load such adapters."""
    recipe = facts.recipe
    if not recipe.lora.dora or recipe.model.tuning != "lora" or not recipe.training:
        return
    rule = "DoRA builds the full update of each adapted matrix in every pass. The estimates of time and GPU memory "
    rule += "leave this out"
    if facts.architecture is not None:  # the identity, the update, the base and their sum, in float32 (peft's dora.py)
        targets = facts.architecture.target_names(recipe.lora.targets)
        adapted = facts.architecture.adapted(targets, recipe.lora.vision)
        largest = max((one.inputs * one.outputs for one in adapted), default=0)
        rule += f", up to {4 * 4 * largest / GIB:.1f} GiB at a time"
    remedy = "Leave a margin of GPU memory, or set lora.dora = false."
    yield warning(Problem("plan.dora_not_estimated", rule, "[lora] dora", remedy=remedy))
    if recipe.export is not None and not writes_merged(recipe):
        rule, remedy = "vLLM does not load DoRA adapters", 'Add "merged" to export.to to serve the model with vLLM.'
        yield warning(Problem("plan.dora_not_servable", rule, "[lora] dora", remedy=remedy))


def _kl_reference(facts: Facts) -> Iterator[PlanFinding]:
    recipe = facts.recipe
    trained_before = recipe.sft or recipe.dpo or recipe.model.adapter is not None
    if recipe.grpo is not None and recipe.grpo.beta > 0 and trained_before:
        rule = "the KL term uses the adapter that GRPO starts from as its reference, not the base model. "
        rule += "A second copy of the adapter is kept, and every optimizer step needs one more forward pass"
        yield warning(
            Problem(
                "plan.kl_reference_is_adapter", rule, "[grpo] beta", remedy="Set grpo.beta = 0 to train without it."
            )
        )


def _preference_estimates(facts: Facts) -> Iterator[PlanFinding]:
    if facts.recipe.dpo is not None and facts.gpu is not None:
        rule = "GPU memory and time of DPO are estimated by formulas that were not checked with a trace or a GPU. "
        rule += "Logits are counted for every position of both answers, and the reference adds a forward pass"
        remedy = "Leave some GPU memory free. OOM recovery continues with fewer pairs per pass."
        yield warning(Problem("plan.dpo_estimate_unchecked", rule, "[dpo]", remedy=remedy))


def _zero_variance_rewards(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a warning if groups with equal rewards, which have no gradient, are probable (trl#3857, #3452)."""
    recipe = facts.recipe
    if recipe.grpo is None:
        return
    counted = {name for name, weight in recipe.reward_weights.items() if weight > 0}
    if counted and counted <= TASKS[recipe.dataset.task].all_or_nothing:
        rule = "every weighted reward is all or nothing, and zero-variance groups have no gradient"
        remedy = "Add weight to a reward with partial credit. The probe before step 1 reports these groups."
        yield warning(Problem("plan.rewards_all_or_nothing", rule, "[rewards]", sorted(counted), remedy))


def _truncated_completions(facts: Facts) -> Iterator[PlanFinding]:
    """Yield warnings for truncated completions, which get no reward (trl#5697, ms-swift#4950)."""
    if facts.tokens is None:
        return
    usual = facts.tokens.percentiles("answer")["p95"]
    for name, section in (("grpo", facts.recipe.grpo), ("evaluate", facts.recipe.evaluate)):
        if section is not None and section.max_completion_tokens < usual:
            over = sum(length.answer > section.max_completion_tokens for length in facts.tokens.lengths)
            rule = f"should be at least {usual}, the 95th percentile of the tokens of the reference answers. "
            rule += f"{over} of {len(facts.tokens.lengths)} rows checked have longer ones"
            place, value = f"[{name}] max_completion_tokens", section.max_completion_tokens
            remedy = "Raise it. Longer answers are truncated and count as wrong."
            yield warning(Problem("plan.answers_cut_off", rule, place, value, remedy))


def _no_gradient_checkpointing(facts: Facts) -> Iterator[PlanFinding]:
    recipe = facts.recipe
    for name, section in recipe.training.items():
        on_gpu = facts.gpu is not None and recipe.model.name != "tiny"
        if not section.gradient_checkpointing and on_gpu:
            rule, place = "every layer keeps its activations", f"[{name}] gradient_checkpointing"
            remedy = "Set it to true to free most of their memory for about a third more time."
            yield warning(Problem("plan.no_gradient_checkpointing", rule, place, False, remedy))


def _evaluated_split_validates(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a warning if the results would be those of the rows that the weights were chosen on."""
    recipe = facts.recipe
    if recipe.validation and recipe.evaluate and recipe.evaluate.split == "validation":
        rule = "the validation split also chooses the weights, so its scores are too good"
        remedy = 'Set evaluate.split = "test".'
        yield warning(Problem("plan.validation_split_evaluated", rule, "[evaluate] split", "validation", remedy))


def _long_warmup(facts: Facts) -> Iterator[PlanFinding]:
    recipe = facts.recipe
    for name, section in recipe.training.items():
        if section.max_steps is not None and section.warmup_steps > section.max_steps:
            rule = (
                f"the warmup is longer than {name}.max_steps (={section.max_steps}), so the learning rate has no peak"
            )
            remedy = "Lower it, or raise max_steps."
            yield warning(Problem("plan.warmup_too_long", rule, f"[{name}] warmup_steps", section.warmup_steps, remedy))


def _rounded_updates(facts: Facts) -> Iterator[PlanFinding]:
    model = facts.recipe.model
    if model.tuning == "full" and model.precision == "16bit":
        rule = "full fine-tuning in 16 bits loses updates that are smaller than the rounding of the weights"
        remedy = 'Set precision = "32bit", or tuning = "lora".'
        yield warning(Problem("plan.small_updates_lost", rule, "[model] precision", model.precision, remedy))


def _remote_code(facts: Facts) -> Iterator[PlanFinding]:
    if facts.recipe.model.trust_remote_code:
        rule = "Python code of the model's authors runs with your permissions"
        yield warning(Problem("plan.remote_code", rule, "[model] trust_remote_code", remedy="Read the code first."))


WARNINGS: tuple[Check, ...] = (
    _check_quantization,
    _no_bfloat16,
    _several_gpus,
    _vision_adapter,
    _dora,
    _kl_reference,
    _preference_estimates,
    _zero_variance_rewards,
    _truncated_completions,
    _no_gradient_checkpointing,
    _evaluated_split_validates,
    _long_warmup,
    _rounded_updates,
    _remote_code,
)
