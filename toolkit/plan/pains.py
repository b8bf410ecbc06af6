"""Warnings of what has cost others their runs, where it applies. Thread numbers are those of GitHub."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from toolkit.backends.sources import writes_merged
from toolkit.plan.architecture import Architecture
from toolkit.plan.findings import Finding, warning
from toolkit.plan.gpu import Gpu
from toolkit.plan.tokens import Tokens
from toolkit.recipe import Recipe

ALL_OR_NOTHING = frozenset({"letter", "exact", "diagnosis", "action", "target", "json"})
"""Rewards that are 0 or 1 for nearly every answer."""


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
    text = "does not compute in bfloat16 (T4, V100 and older do not): all that is not quantised is float32, slower and "
    text += "twice the memory; the estimate counts it"
    remedy = "MedGemma and Gemma 3 overflow in float16; a smaller model, or a card of the Ampere generation or later."
    yield warning(known.gpu.name, text, remedy)


def _several_cards(known: Known) -> Iterator[Finding]:
    """unsloth#431, #2467."""
    if known.gpu is not None and known.gpu.count > 1:
        text = f"{known.gpu.count} GPUs are here, one is used"
        yield warning("GPU", text, "`accelerate launch --num_processes 2 -m toolkit run RECIPE` uses two.")


def _vision_adapter(known: Known) -> Iterator[Finding]:
    """vllm#21500, #41754."""
    recipe = known.recipe
    exports_adapter_alone = recipe.export is not None and not writes_merged(recipe)
    if recipe.lora.vision and recipe.model.tuning == "lora" and recipe.model.name != "tiny" and exports_adapter_alone:
        text = "vLLM does not load an adapter with layers of the vision tower, or leaves them out in silence"
        yield warning("[lora] vision", text, 'Add "merged" to export.to for it.')


def _kl_reference(known: Known) -> Iterator[Finding]:
    recipe = known.recipe
    if (
        recipe.grpo is not None
        and recipe.grpo.beta > 0
        and (recipe.sft is not None or recipe.model.adapter is not None)
    ):
        text = (
            "the KL term is measured against the adapter that GRPO goes on from, a second copy of which is kept, not "
        )
        yield warning("[grpo] beta", text + "against the base model; every step has one forward pass more")


def _flat_rewards(known: Known) -> Iterator[Finding]:
    """trl#3857, #3452: groups whose answers all earn the same teach nothing."""
    recipe = known.recipe
    if recipe.grpo is None:
        return
    counted = {name for name, weight in recipe.reward_weights.items() if weight > 0}
    if counted and counted <= ALL_OR_NOTHING:
        text = (
            f"every reward that counts is 0 or 1 ({', '.join(sorted(counted))}): groups in which all answers earn the "
        )
        text += "same teach nothing"
        yield warning("[rewards]", text, "Weight a reward with partial credit too; the probe before step 1 tells.")


def _answers_cut_off(known: Known) -> Iterator[Finding]:
    """trl#5697, ms-swift#4950: answers that run into the limit earn nothing."""
    if known.tokens is None:
        return
    usual = known.tokens.spread("answer")["p95"]
    for name, section in (("grpo", known.recipe.grpo), ("evaluate", known.recipe.evaluate)):
        if section is not None and section.max_completion_tokens < usual:
            text = f"is {section.max_completion_tokens}, and 5 % of the reference answers have {usual} tokens or more"
            yield warning(f"[{name}] max_completion_tokens", text, "Longer answers are cut off and count as wrong.")


def _no_checkpointing(known: Known) -> Iterator[Finding]:
    recipe = known.recipe
    for name, section in (("sft", recipe.sft), ("grpo", recipe.grpo)):
        on_a_card = known.gpu is not None and recipe.model.name != "tiny"
        if section is not None and not section.gradient_checkpointing and on_a_card:
            text = "is off: every layer keeps its activations"
            yield warning(f"[{name}] gradient_checkpointing", text, "It saves most of them for a third more time.")


def _rounded_steps(known: Known) -> Iterator[Finding]:
    model = known.recipe.model
    if model.tuning == "full" and model.precision == "16bit":
        text = "full fine-tuning in 16 bits: steps smaller than the weights' rounding are lost"
        yield warning("[model] precision", text, 'Take "32bit", or tuning = "lora".')


def _remote_code(known: Known) -> Iterator[Finding]:
    if known.recipe.model.trust_remote_code:
        yield warning("[model] trust_remote_code", "Python code of the model's authors runs with your rights")


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
