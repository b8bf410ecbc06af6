"""Recipe settings that Unsloth does not support or would change, which are rejected before training."""

from toolkit.errors import ModelError
from toolkit.recipe import Recipe


def check_supported(recipe: Recipe) -> None:
    """Raise ModelError with all ``unsupported_reasons``, if there are any."""
    if reasons := unsupported_reasons(recipe):
        raise ModelError(
            "model.unsloth_cannot_train",
            f"Unsloth cannot train this recipe: {'; '.join(reasons)}",
            place="[model] backend",
            remedy='Change the recipe, or set backend = "hf".',
        )


def unsupported_reasons(recipe: Recipe) -> list[str]:
    """Return the reasons why Unsloth cannot train this recipe as written. Empty if it can."""
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
    """Checkpointing is set once, when the model is loaded. Trainers cannot change it (unsloth#4735)."""
    if recipe.sft and recipe.grpo and recipe.sft.gradient_checkpointing != recipe.grpo.gradient_checkpointing:
        return ["[sft] and [grpo] must have the same gradient_checkpointing"]
    return []


def _grpo(recipe: Recipe) -> list[str]:
    grpo = recipe.grpo
    if grpo is None:
        return []
    reasons = []
    if grpo.loss == "dr_grpo" and grpo.scale_rewards == "group":
        reasons.append('loss = "dr_grpo" would disable grpo.scale_rewards: set scale_rewards = "none"')
    if grpo.temperature >= 10:
        reasons.append("grpo.temperature must be below 10")
    return reasons


def _export(recipe: Recipe) -> list[str]:
    requested = recipe.export is not None and recipe.export.allow_dequantised
    return ["export.allow_dequantised is not supported with Unsloth"] if requested else []
