"""Before Unsloth is imported: recipe settings that it does not support, and its import before other libraries.

This module imports no model library.
"""

import gc
import logging
import os
import sys
from pathlib import Path

from toolkit.distribution import pip_install
from toolkit.errors import ModelError, warn
from toolkit.recipe import Recipe
from toolkit.runfolder import world_size

log = logging.getLogger(__name__)

PATCHED = ("transformers", "trl", "peft")
"""Libraries that Unsloth patches on import. Objects that other modules imported earlier stay unpatched."""

COMPILED = "unsloth"
"""Folder in the run folder for the modules that Unsloth generates."""


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
    return [reason for check in (_weights, _checkpointing, _dpo, _grpo, _export) for reason in check(recipe)]


def start(folder: Path) -> None:
    """Import Unsloth with its cache in ``folder``, unless it is imported already.

    By default, Unsloth writes ``unsloth_compiled_cache`` to the working directory, where other runs would use it too.

    Raises:
        ModelError: One of ``PATCHED`` was imported before, or Unsloth cannot be imported.
    """
    if "unsloth" in sys.modules:
        return
    if early := [name for name in PATCHED if name in sys.modules]:
        raise ModelError(
            "model.unsloth_imported_late",
            "unsloth must be imported before transformers, trl and peft",
            place="[model] backend",
            value=early,
            remedy='Import unsloth at the top of your program, use the command line, or set backend = "hf".',
        )
    compiled = folder.absolute() / COMPILED
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(compiled)
    log.info("backend unsloth: generated modules are in %s", compiled)
    _use_one_gpu()
    try:
        import unsloth  # noqa: F401
    except (ImportError, NotImplementedError, RuntimeError, OSError) as error:
        raise ModelError(
            "model.unsloth_not_importable",
            "unsloth must be importable",
            place="[model] backend",
            value=(str(error).strip() or type(error).__name__).splitlines()[0][:200],
            remedy=f'Install the tested versions ({pip_install()}), or set backend = "hf".',
        ) from error
    # Unsloth runs the garbage collector nine times per load. Freezing excludes 700,000 objects of these libraries.
    gc.freeze()


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


def _dpo(recipe: Recipe) -> list[str]:
    """Unsloth's changes to DPO name methods of DPOTrainer that TRL 1.9 has not (models/rl_replacements.py)."""
    return ["[dpo] is not supported, because its DPO trainer is made for an earlier TRL"] if recipe.dpo else []


def _grpo(recipe: Recipe) -> list[str]:
    grpo = recipe.grpo
    if grpo is None:
        return []
    reasons = []
    if grpo.loss == "dr_grpo" and grpo.scale_rewards == "group":
        reasons.append('loss = "dr_grpo" would disable grpo.scale_rewards: set scale_rewards = "none"')
    if grpo.temperature >= 10:
        reasons.append("grpo.temperature must be below 10")
    if grpo.packing is True:
        reasons.append("grpo.packing = true is not supported with Unsloth")
    return reasons


def _export(recipe: Recipe) -> list[str]:
    requested = recipe.export is not None and recipe.export.allow_dequantized
    return ["export.allow_dequantized is not supported with Unsloth"] if requested else []


def _use_one_gpu() -> None:
    """Make one of several GPUs visible (Kaggle has two). Otherwise the model would be distributed over all."""
    import torch

    if world_size() > 1 or torch.cuda.device_count() < 2:
        return
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    first = seen.split(",")[0].strip()
    os.environ["CUDA_VISIBLE_DEVICES"] = first
    warn(
        "model.one_gpu_used",
        f"Unsloth trains on one GPU, so number {first} of {seen.count(',') + 1} is used alone",
        place="CUDA_VISIBLE_DEVICES",
        value=seen,
        remedy=f"Set CUDA_VISIBLE_DEVICES={first} to choose it yourself.",
    )
