"""What Unsloth would do otherwise than the recipe says: refused before anything is trained."""

from toolkit.errors import ModelError
from toolkit.recipe import Recipe


def check_supported(recipe: Recipe) -> None:
    """Raises ModelError with every reason of ``unsupported_reasons``."""
    if reasons := unsupported_reasons(recipe):
        raise ModelError(
            "model.unsloth_cannot_train",
            f"Unsloth cannot train this recipe: {'; '.join(reasons)}",
            place="[model] backend",
            remedy='Change the recipe, or set backend = "hf".',
        )


def unsupported_reasons(recipe: Recipe) -> list[str]:
    """Why Unsloth cannot train this recipe as it is written, each as a sentence; empty: it can."""
    return [reason for check in (_weights, _checkpointing, _grpo, _export) for reason in check(recipe)]


def _weights(recipe: Recipe) -> list[str]:
    reasons = []
    if recipe.model.tuning == "full":
        reasons.append('model.tuning = "full" is not supported with Unsloth')
    if recipe.model.precision == "32bit":
        # models/rl.py: a float32 model is trained under bfloat16 autocast where the GPU has it.
        reasons.append('model.precision = "32bit" would compute in bfloat16')
    return reasons


def _checkpointing(recipe: Recipe) -> list[str]:
    """The model is told once, when it is loaded, and keeps it whatever a trainer says (unsloth#4735)."""
    if recipe.sft and recipe.grpo and recipe.sft.gradient_checkpointing != recipe.grpo.gradient_checkpointing:
        return ["[sft] and [grpo] must have the same gradient_checkpointing"]
    return []


def _grpo(recipe: Recipe) -> list[str]:
    grpo = recipe.grpo
    if grpo is None:
        return []
    reasons = []
    if grpo.loss == "dr_grpo" and grpo.scale_rewards == "group":
        reasons.append('loss = "dr_grpo" would switch grpo.scale_rewards off: write scale_rewards = "none"')
    if grpo.temperature >= 10:
        reasons.append("grpo.temperature must be below 10")
    return reasons


def _export(recipe: Recipe) -> list[str]:
    asked = recipe.export is not None and recipe.export.allow_dequantised
    return ["export.allow_dequantised is not supported with Unsloth"] if asked else []
