"""Whether GRPO packs a prompt and its completions into one row, and the sizes of its passes.

The rows are built in ``packed_prompts``. This module imports no model library.
"""

from toolkit.errors import ModelError
from toolkit.models.oom import Sizes, recipe_sizes
from toolkit.recipe import Grpo, Recipe

PACKABLE = ("gemma3", "qwen2_5_vl", "qwen3_vl")
"""Model types whose log-probabilities and gradients are equal to those of unpacked rows (tests/test_packing.py)."""


MAX_PACKED_TOKENS = 1024
"""Maximum number of completion tokens of a row with ``packing = "auto"``.

The loss on so long a row takes 4 GiB for Gemma 3.
"""


def not_packed_reasons(recipe: Recipe, backend: str, model_type: str) -> tuple[str, ...]:
    """Return the reasons why GRPO does not pack prompts. Empty if it does.

    Args:
        recipe: The recipe, with a section [grpo].
        backend: The name of the backend that trains.
        model_type: The model's ``model_type``, such as gemma3.

    Raises:
        ModelError: ``grpo.packing`` is true, but prompts cannot be packed. The error lists every reason.
    """
    grpo = recipe.grpo_settings
    if grpo.packing is False:
        return ("packing = false",)
    known = ", ".join(PACKABLE)
    too_long = (
        f"rows with an equal part of the completions would have more than {MAX_PACKED_TOKENS:,} completion tokens"
    )
    found: list[tuple[bool, str]] = [
        (backend == "hf", f"the backend {backend} computes log-probabilities in its own way"),
        (model_type in PACKABLE, f"packed rows are verified for {known}, but not for {model_type}"),
        (recipe.model.attention != "flash_attention_2", "flash_attention_2 takes no mask for each pair of tokens"),
        (grpo.loss != "bnpo", 'loss = "bnpo" depends on the completions in a pass, which packing changes'),
        (packed_completions(grpo) > 1, too_long),
    ]
    reasons = tuple(reason for holds, reason in found if not holds)
    if reasons and grpo.packing is True:
        raise ModelError(
            "training.packing_unsupported",
            f"prompts cannot be packed: {'; '.join(reasons)}",
            place="[grpo] packing",
            value=grpo.packing,
            remedy='Set packing = "auto", which packs where it is supported.',
        )
    return reasons


def packed_completions(grpo: Grpo) -> int:
    """Return the completions of a packed row: all of a prompt, or an equal part within ``MAX_PACKED_TOKENS``."""
    if grpo.packing is True:
        return grpo.generations
    parts = (grpo.generations // rows for rows in range(1, grpo.generations + 1) if grpo.generations % rows == 0)
    return next((count for count in parts if count * grpo.max_completion_tokens <= MAX_PACKED_TOKENS), 1)


def packed_sizes(recipe: Recipe) -> Sizes:
    """Return the sizes of a stage that packs prompts: a pass has one packed row.

    After an out-of-memory error, a pass has fewer completions of a prompt (``Sizes.smaller``). With one, rows are those
    of a stage without packing.
    """
    sizes, grpo = recipe_sizes(recipe, "grpo"), recipe.grpo_settings
    count = packed_completions(grpo)
    return Sizes(count, grpo.completions_per_step // count, sizes.completions)
