"""Every keyword that Unsloth's functions and trainers are called with, made from the recipe.

tests/test_unsloth_contract.py binds these very dictionaries to the signatures of the installed Unsloth.
"""

from dataclasses import dataclass
from typing import Any

import torch

from toolkit.models.backend import Policy
from toolkit.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Loading:
    """What a model is loaded for, besides what the recipe says."""

    trainable: bool
    exact: bool = False
    """Load this very repository or folder, not the one that Unsloth's table of names puts in its place."""


def load_options(recipe: Recipe, name: str, loading: Loading) -> dict[str, Any]:
    """Keyword arguments of ``FastVisionModel.from_pretrained``.

    ``dtype`` None is bfloat16 where the GPU has it, else float16; Unsloth takes float32 for Gemma 3 there, which
    overflows in float16.
    """
    model = recipe.model
    precision = "4bit" if model.precision == "auto" else model.precision
    options: dict[str, Any] = {
        "model_name": name,
        "max_seq_length": model.max_tokens,
        "dtype": None,
        "load_in_4bit": precision == "4bit",
        "load_in_8bit": precision == "8bit",
        "load_in_16bit": precision == "16bit",
        "use_gradient_checkpointing": "unsloth" if loading.trainable and wants_checkpointing(recipe) else False,
        "random_state": recipe.run.seed,
        "trust_remote_code": model.trust_remote_code,
        "revision": model.revision,
        # A pinned revision belongs to the repository that was asked for (unsloth, models/loader.py ignores it else).
        "use_exact_model_name": loading.exact or model.revision is not None,
    }
    if model.attention != "auto":
        options["attn_implementation"] = model.attention
    if loading.trainable and by_vllm(recipe):
        options |= {"fast_inference": True, "max_lora_rank": recipe.lora.r}
    return options


def lora_options(recipe: Recipe, layers: list[str]) -> dict[str, Any]:
    """Keyword arguments of ``FastVisionModel.get_peft_model``.

    Args:
        recipe: the run.
        layers: full names of the layers to adapt; used where the vision tower is adapted too. For the language model
            alone Unsloth finds them by the last part of their names, as vLLM needs it.
    """
    lora = recipe.lora
    return {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "target_modules": layers if lora.vision else list(lora.targets),
        "finetune_vision_layers": lora.vision,
        "finetune_language_layers": True,
        "finetune_attention_modules": True,
        "finetune_mlp_modules": True,
        "use_gradient_checkpointing": "unsloth" if wants_checkpointing(recipe) else False,
        "random_state": recipe.run.seed,
    }


def sft_changes(policy: Policy, recipe: Recipe) -> dict[str, Any]:
    """What of ``settings.sft_settings`` Unsloth does otherwise, asked for so that nothing is rewritten."""
    return {
        **_common_changes(policy, recipe),
        # Its fused loss takes the place of TRL's chunked_nll, and is as sparing.
        "loss_type": "nll",
        # It puts the model's limit here. Nothing is cut: rows are counted before, and the collator never cuts.
        "max_length": recipe.model.max_tokens,
        "packing": False,
        "padding_free": False,
    }


def grpo_changes(policy: Policy, recipe: Recipe) -> dict[str, Any]:
    """What of ``settings.grpo_settings`` Unsloth does otherwise."""
    changes = _common_changes(policy, recipe)
    if recipe.grpo and by_vllm(recipe):
        changes |= {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "top_k": recipe.grpo.top_k or -1,  # vLLM's way of saying all
            "generation_kwargs": {
                "logit_bias": dict.fromkeys(policy.forbidden, -100.0),
                "stop_token_ids": [policy.turn_end.id],
            },
        }
    return changes


def half_precision(policy: Policy) -> torch.dtype | None:
    """What training computes in: bfloat16, else float16, else (Gemma 3 on a GPU without bfloat16) None: float32."""
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return None if getattr(policy.model, "_unsloth_forced_float32", False) else torch.float16


def wants_checkpointing(recipe: Recipe) -> bool:
    """Whether the training stages checkpoint; ``limits`` sees that they agree."""
    return any(section.gradient_checkpointing for section in (recipe.sft, recipe.grpo) if section)


def by_vllm(recipe: Recipe) -> bool:
    """Whether vLLM writes GRPO's completions."""
    return recipe.grpo is not None and recipe.grpo.rollouts == "vllm"


def _common_changes(policy: Policy, recipe: Recipe) -> dict[str, Any]:
    half = half_precision(policy)
    # Unsloth's checkpointing is reentrant, and its settings say so of every run that checkpoints (models/rl.py).
    reentrant = {"use_reentrant": True} if wants_checkpointing(recipe) else None
    return {
        "bf16": half == torch.bfloat16,
        "fp16": half == torch.float16,
        "gradient_checkpointing_kwargs": reentrant,
    }
