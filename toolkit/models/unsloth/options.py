"""Keyword arguments of Unsloth's functions and trainers, from the recipe.

tests/test_unsloth_contract.py binds these dictionaries to the signatures of the installed Unsloth.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from toolkit.models.backend import Policy
from toolkit.models.families import LAYERS
from toolkit.recipe import Recipe
from toolkit.recipe.sections import ALL_LINEAR

Keywords = Mapping[str, object]
"""Keyword arguments of a library that has no types."""


@dataclass(frozen=True, slots=True)
class Loading:
    """Arguments of loading that are not in the recipe."""

    trainable: bool
    exact: bool = False
    """Load this repository or folder, not the one that Unsloth's table of names substitutes."""


def load_options(recipe: Recipe, name: str, loading: Loading) -> Keywords:
    """Return the keyword arguments of ``FastVisionModel.from_pretrained``.

    ``dtype`` None is bfloat16 if the GPU supports it, otherwise float16. For Gemma 3, which overflows in float16,
    Unsloth uses float32 instead.
    """
    model = recipe.model
    precision = "4bit" if model.precision == "auto" else model.precision
    options: dict[str, object] = {
        "model_name": name,
        "max_seq_length": model.max_tokens,
        "dtype": None,
        "load_in_4bit": precision == "4bit",
        "load_in_8bit": precision == "8bit",
        "load_in_16bit": precision == "16bit",
        "use_gradient_checkpointing": "unsloth" if loading.trainable and uses_checkpointing(recipe) else False,
        "random_state": recipe.run.seed_of_training,
        "trust_remote_code": model.trust_remote_code,
        "revision": model.revision,
        # A pinned revision belongs to this repository. Unsloth ignores it for a substitute (models/loader.py).
        "use_exact_model_name": loading.exact or model.revision is not None,
    }
    if model.attention != "auto":
        options["attn_implementation"] = model.attention
    if loading.trainable and uses_vllm(recipe):
        options |= {"fast_inference": True, "max_lora_rank": recipe.lora.r}
    return options


def lora_options(recipe: Recipe, layers: list[str]) -> Keywords:
    """Return the keyword arguments of ``FastVisionModel.get_peft_model``.

    Args:
        recipe: The run.
        layers: Full names of the layers to adapt, used if the vision tower is adapted too, or the decoder has layers
            other than attention and MLP, which Unsloth's filters would leave out. Otherwise, Unsloth finds them by the
            last part of their names, as vLLM requires.
    """
    lora = recipe.lora
    names = list(lora.targets)
    if lora.targets == ALL_LINEAR:
        names = [name for name in LAYERS if any(layer.endswith(f".{name}") for layer in layers)]
    by_path = lora.vision or any(layer.rpartition(".")[2] not in names for layer in layers)
    return {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        # Not a parameter of its own: get_peft_model passes further keywords that LoraConfig knows to it. Its fused
        # kernels leave DoRA layers to peft's forward (kernels/utils.py, _has_active_dora_adapter).
        "use_dora": lora.dora,
        "bias": "none",
        "target_modules": layers if by_path else names,
        "finetune_vision_layers": by_path,
        "finetune_language_layers": True,
        "finetune_attention_modules": True,
        "finetune_mlp_modules": True,
        "use_gradient_checkpointing": "unsloth" if uses_checkpointing(recipe) else False,
        "random_state": recipe.run.seed_of_training,
    }


def sft_changes(policy: Policy, recipe: Recipe) -> Keywords:
    """Return the SFT settings that Unsloth would rewrite, with its values, so that nothing is rewritten."""
    return {
        **_common_changes(policy, recipe),
        # Unsloth's fused loss replaces TRL's chunked_nll and needs similar memory.
        "loss_type": "nll",
        # Unsloth sets the model's limit here. Rows are counted before training, and the collator never truncates.
        "max_length": recipe.model.max_tokens,
        "packing": False,
        "padding_free": False,
    }


def grpo_changes(policy: Policy, recipe: Recipe) -> Keywords:
    """Return the GRPO settings that Unsloth would rewrite, with its values, and those of vLLM."""
    changes = _common_changes(policy, recipe)
    if recipe.grpo and uses_vllm(recipe):
        changes = {
            **changes,
            "use_vllm": True,
            "vllm_mode": "colocate",
            "top_k": recipe.grpo.top_k or -1,  # vLLM's value for no limit
            "generation_kwargs": {
                "logit_bias": dict.fromkeys(policy.forbidden, -100.0),
                "stop_token_ids": [policy.turn_end.id],
            },
        }
    return changes


def half_precision(policy: Policy) -> torch.dtype | None:
    """Return bfloat16 or float16, in which training computes. None: float32 (Gemma 3 without bfloat16)."""
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return None if getattr(policy.model, "_unsloth_forced_float32", False) else torch.float16


def uses_checkpointing(recipe: Recipe) -> bool:
    """Return whether training uses gradient checkpointing. ``limits`` checks that both stages agree."""
    return any(section.gradient_checkpointing for section in (recipe.sft, recipe.grpo) if section)


def uses_vllm(recipe: Recipe) -> bool:
    """Return whether vLLM generates GRPO's completions."""
    return recipe.grpo is not None and recipe.grpo.rollouts == "vllm"


def _common_changes(policy: Policy, recipe: Recipe) -> Keywords:
    half = half_precision(policy)
    # Unsloth's checkpointing is reentrant, and its trainers set this for every run that uses it (models/rl.py).
    reentrant = {"use_reentrant": True} if uses_checkpointing(recipe) else None
    return {
        "bf16": half == torch.bfloat16,
        "fp16": half == torch.float16,
        "gradient_checkpointing_kwargs": reentrant,
    }
