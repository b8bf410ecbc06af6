"""The recipe's SFT and GRPO sections as TRL's settings, and the check that nobody rewrote one."""

from collections.abc import Mapping
from typing import Any

import torch

from toolkit.errors import TrainingError, warn
from toolkit.models.backend import Policy, TrainingJob
from toolkit.models.batch_sizes import recipe_sizes
from toolkit.recipe import Grpo, Optimisation, Recipe, Sft
from toolkit.runfolder import world_size
from toolkit.training.callbacks import PARTIAL

_NOT_COMPARED = frozenset({"output_dir", "report_to"})
"""TRL normalises how these are written."""


def sft_settings(job: TrainingJob) -> dict[str, Any]:
    """Keyword arguments of trl.SFTConfig."""
    sft, sizes = job.recipe.sft or Sft(), job.sizes or recipe_sizes(job.recipe, "sft")
    return {
        **_common(job, sft, sft.epochs),
        "learning_rate": sft.learning_rate,
        "per_device_train_batch_size": sizes.micro_batch,
        "gradient_accumulation_steps": _shared(sizes.accumulation, "[sft] accumulation"),
        "max_grad_norm": sft.max_grad_norm,
        "max_length": None,  # a row that is too long was found before training; cutting one would cut its image
        "loss_type": "chunked_nll",  # the vocabulary's logits are computed for answer tokens alone
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
    }


def grpo_settings(policy: Policy, job: TrainingJob) -> dict[str, Any]:
    """Keyword arguments of trl.GRPOConfig: one update from prompts_per_step * generations completions."""
    grpo, sizes = job.recipe.grpo or Grpo(), job.sizes or recipe_sizes(job.recipe, "grpo")
    _shared(grpo.prompts_per_step, "[grpo] prompts_per_step")  # a group of completions stays with one process
    passes = _shared(sizes.accumulation, "[grpo] forward passes a step")
    return {
        **_common(job, grpo, grpo.epochs),
        "learning_rate": grpo.learning_rate,
        "max_grad_norm": grpo.max_grad_norm,
        "per_device_train_batch_size": sizes.micro_batch,
        "gradient_accumulation_steps": passes,
        "num_generations": grpo.generations,
        "generation_batch_size": grpo.completions_per_step,
        "max_completion_length": grpo.max_completion_tokens,
        "temperature": grpo.temperature,
        "top_p": grpo.top_p,
        "top_k": grpo.top_k,
        "beta": grpo.beta,
        "epsilon": grpo.epsilon,
        "epsilon_high": grpo.epsilon if grpo.epsilon_high is None else grpo.epsilon_high,
        "loss_type": grpo.loss,
        "importance_sampling_level": grpo.importance,
        "scale_rewards": grpo.scale_rewards,
        "mask_truncated_completions": grpo.mask_truncated,
        "generation_kwargs": _generation(policy, grpo, preflight=job.preflight) or None,
        "reward_weights": list(job.scorer.weights.values()) if job.scorer else None,
        "remove_unused_columns": False,
        "log_completions": False,
    }


def _generation(policy: Policy, grpo: Grpo, *, preflight: bool) -> dict[str, Any]:
    """What TRL hands on to ``generate``. The completions of a preflight step are as long as they can be."""
    settings: dict[str, Any] = {"suppress_tokens": list(policy.forbidden)} if policy.forbidden else {}
    return {**settings, "min_new_tokens": grpo.max_completion_tokens} if preflight else settings


def _shared(count: int, place: str) -> int:
    """What each of several processes does of a step: a recipe means the same step however many work on it.

    Raises:
        TrainingError: the processes cannot share it evenly.
    """
    if count % world_size():
        raise TrainingError(
            "training.step_not_divisible",
            f"must be a multiple of the {world_size()} processes",
            place=place,
            value=count,
            remedy=f"Choose a multiple of {world_size()}, or start fewer processes.",
        )
    return count // world_size()


def check_settings(wanted: Mapping[str, Any], built: Any) -> None:
    """Compare what the recipe asked for with what the built trainer holds.

    Raises:
        TrainingError: a value was rewritten (Unsloth and TRL do so with a print at most: unsloth#3572, #3149).
    """
    changed = {
        name: (value, getattr(built, name))
        for name, value in wanted.items()
        if name not in _NOT_COMPARED and getattr(built, name) != value
    }
    if "per_device_train_batch_size" in wanted and built.train_batch_size != wanted["per_device_train_batch_size"]:
        changed["train_batch_size"] = (wanted["per_device_train_batch_size"], built.train_batch_size)
    if changed:
        listed = "; ".join(f"{name}: {old!r} became {new!r}" for name, (old, new) in sorted(changed.items()))
        raise TrainingError(
            "training.settings_rewritten",
            "the trainer must use the recipe's settings",
            value=listed,
            remedy="Write the new values into the recipe if you want them.",
        )


def use_one_gpu(settings: Any) -> Any:
    """The settings, with one GPU however many the machine has.

    Left alone, transformers multiplies the batch by the GPUs that it sees (two on Kaggle) and spreads the model.
    """
    if settings.device.type == "cuda":  # asking for the device makes the settings count the GPUs
        settings._n_gpu = 1
    return settings


def local_optimizer(section: Optimisation) -> str:
    """Return the optimizer that trains on this machine: paging moves state from GPU memory, so a CPU has none.

    The update is that of the optimizer without paging.
    """
    return section.optimizer if torch.cuda.is_available() else section.optimizer.removeprefix("paged_")


def mixed_precision(recipe: Recipe) -> bool:
    """Whether training computes in bfloat16: on a CUDA device that can, unless the recipe says 32bit."""
    if not torch.cuda.is_available() or recipe.model.precision == "32bit":
        return False
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _common(job: TrainingJob, section: Optimisation, epochs: float) -> dict[str, Any]:
    run = job.recipe.run
    optimizer = local_optimizer(section)
    if optimizer != section.optimizer:
        warn(
            "training.optimizer_not_paged",
            f"a CPU cannot page GPU memory, so the optimizer is {optimizer}",
            place="optimizer",
            value=section.optimizer,
        )
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(job.folder / PARTIAL),
        "num_train_epochs": epochs,
        "max_steps": 1 if job.preflight else section.max_steps or -1,
        "lr_scheduler_type": section.schedule,
        "warmup_steps": section.warmup_steps,
        "weight_decay": section.weight_decay,
        "optim": optimizer,
        "gradient_checkpointing": section.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if section.gradient_checkpointing else None,
        "logging_steps": run.log_steps,
        "logging_nan_inf_filter": False,  # a loss of NaN is shown, not replaced by the last good one
        "save_strategy": "no" if job.preflight else "steps",
        "save_steps": run.checkpoint_steps,
        "seed": run.seed,
        "report_to": "none" if job.preflight else list(run.report_to) or "none",
        "run_name": run.name,
        "bf16": mixed_precision(job.recipe),
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "disable_tqdm": True,
        # DDP sends buffers by their order, and Gemma 3 (transformers 5.15) makes its rotary buffers in the order of a
        # set of strings, which differs between processes: the second one would compute with swapped frequencies.
        "ddp_broadcast_buffers": False,
    }
