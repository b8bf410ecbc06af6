"""What SFT, DPO and GRPO have in common: settings and construction of TRL's trainers, and a check of the settings."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PrinterCallback

from toolkit.errors import TrainingError, warn
from toolkit.evaluation.trackers import PROJECT, tracked_name
from toolkit.models.backend import Policy, TrainingJob
from toolkit.models.families import PROJECTOR, VISION
from toolkit.models.flops import flop_counter
from toolkit.recipe import Optimisation, Recipe
from toolkit.runfolder import find_run
from toolkit.runfolder.usage import count, counts, note_unmeasured
from toolkit.training.resume import PARTIAL

log = logging.getLogger(__name__)

_NOT_COMPARED = frozenset({"output_dir", "report_to"})
"""Settings that TRL normalises, so their spelling may differ."""


def common_settings(job: TrainingJob, section: Optimisation, epochs: float) -> dict[str, object]:
    """Return the keyword arguments that the configurations of TRL's trainers have in common."""
    run = job.recipe.run
    optimizer = local_optimizer(section)
    if optimizer != section.optimizer:
        warn(
            "training.optimizer_not_paged",
            f"a CPU cannot page GPU memory, so the optimizer is {optimizer}",
            place="optimizer",
            value=section.optimizer,
        )
    cuda, warmup = torch.cuda.is_available(), section.warmup_steps or section.warmup_fraction
    return {
        "output_dir": str(job.folder / PARTIAL),
        "num_train_epochs": epochs,
        "max_steps": 1 if job.preflight else section.max_steps or -1,
        # "constant" of transformers ignores the warmup.
        "lr_scheduler_type": "constant_with_warmup" if section.schedule == "constant" and warmup else section.schedule,
        "warmup_steps": warmup,
        "weight_decay": section.weight_decay,
        "optim": optimizer,
        "gradient_checkpointing": section.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if section.gradient_checkpointing else None,
        "logging_steps": run.log_steps,
        "logging_nan_inf_filter": False,  # transformers would replace a NaN loss by the last finite one
        "save_strategy": "no" if job.preflight else "steps",
        "save_steps": run.checkpoint_steps,
        "seed": run.seed_of_training,
        "report_to": "none" if job.preflight else list(run.report_to) or "none",
        "run_name": run.name,
        **_trackio_run(job),
        "bf16": mixed_precision(job.recipe),
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "disable_tqdm": True,
        # DDP matches buffers by their order. Gemma 3 (transformers 5.15) creates its rotary buffers in the order of a
        # set of strings, which differs between processes. A broadcast would give other processes swapped frequencies.
        "ddp_broadcast_buffers": False,
    }


def _trackio_run(job: TrainingJob) -> dict[str, object]:
    """Return the settings by which the callback of transformers continues the trackio run of the run folder."""
    if job.preflight or "trackio" not in job.recipe.run.report_to:
        return {}
    return {"project": PROJECT, "run_name": tracked_name(find_run(job.recipe.run_folder))}


def local_optimizer(section: Optimisation) -> str:
    """Return the optimizer for this machine. A CPU gets the unpaged one, which computes the same update.

    Paging moves optimizer state out of GPU memory.
    """
    return section.optimizer if torch.cuda.is_available() else section.optimizer.removeprefix("paged_")


def mixed_precision(recipe: Recipe) -> bool:
    """Return whether training computes in bfloat16: if the GPU supports it and the precision is not 32bit."""
    if not torch.cuda.is_available() or recipe.model.precision == "32bit":
        return False
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def build_trainer(trainer_class: Any, args: Any, policy: Policy, job: TrainingJob, **arguments: Any) -> Any:
    """Return a trainer of the policy on one GPU, with trainable parameters in the dtype that they have.

    Args:
        trainer_class: A trainer of TRL, or a subclass.
        args: The settings, such as ``trl.GRPOConfig``.
        policy: The policy to train.
        job: Its callbacks are added.
        arguments: Further arguments of the trainer.
    """
    with _keep_precision(policy.model):
        return trainer_class(model=policy.model, args=_use_one_gpu(args), callbacks=list(job.callbacks), **arguments)


def finish_trainer(
    trainer: Any, settings: Mapping[str, object], policy: Policy, job: TrainingJob, *, count_flops: bool
) -> Any:
    """Check the settings of a new trainer and return it with left padding and without its own printing.

    Args:
        trainer: The trainer.
        settings: The settings that it was built with.
        policy: The policy that it trains.
        job: The job that it was built for.
        count_flops: Whether to count the FLOPs of its first pass. A preflight step is never counted.

    Raises:
        TrainingError: The library rewrote a setting.
    """
    if count_flops and not job.preflight:
        count_one_pass(trainer, policy)
    check_settings(settings, trainer.args)
    for processor in (policy.processor, trainer.processing_class):
        # Unsloth's trainers set right padding (models/rl.py), which would misalign Gemma's mask of image tokens.
        processor.tokenizer.padding_side = "left"
    trainer.remove_callback(PrinterCallback)  # it prints a table, while progress goes through our own callback
    return trainer


def set_learning_rates(trainer: Any, section: Optimisation) -> None:
    """Give the vision tower and the projector their own learning rates, as optimizer groups, if the recipe has them.

    The groups decay as those of transformers do. All have the recipe's schedule. The first one, whose rate the log
    shows, has ``learning_rate``, unless only the other two parts are trained.

    Raises:
        TrainingError: No trained parameter belongs to the part.
    """
    rates = {"vision": section.vision_learning_rate, "projector": section.projector_learning_rate}
    if rates["vision"] is None and rates["projector"] is None:
        return
    trained = [(name, value) for name, value in trainer.model.named_parameters() if value.requires_grad]
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    groups = []
    for part in ("language", "vision", "projector"):
        own = [(name, value) for name, value in trained if _part_of(name) == part]
        rate = rates.get(part)
        if rate is not None and not own:
            raise TrainingError(
                "training.part_not_trained",
                f"a learning rate of its own needs trained parameters, and none belong to the {part} of this model",
                place=f"{part}_learning_rate",
                value=rate,
                remedy='Remove it, or train these parameters with model.tuning = "full".',
            )
        options = {} if rate is None else {"lr": rate}
        for decays in (True, False):
            params = [value for name, value in own if (name in decayed) == decays]
            decay = trainer.args.weight_decay if decays else 0.0
            groups += [{"params": params, "weight_decay": decay, **options}] if params else []
        if own:
            count = sum(value.numel() for _, value in own)
            log.info(
                "learning rate of the %s (%s parameters): %g", part, f"{count:,}", rate or trainer.args.learning_rate
            )
    optimizer, keywords = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    trainer.optimizer_cls_and_kwargs = optimizer, {**keywords, "params": groups}


def _part_of(name: str) -> str:
    """Return the part of the model that a parameter belongs to."""
    if PROJECTOR.search(name):
        return "projector"
    return "vision" if VISION.search(name) else "language"


def check_settings(wanted: Mapping[str, object], built: Any) -> None:
    """Compare the recipe's settings with those of the built trainer.

    Raises:
        TrainingError: A value differs. Unsloth and TRL rewrite values with a print at most (unsloth#3572, #3149).
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


@contextmanager
def _keep_precision(model: Any) -> Iterator[None]:
    """Keep the dtype of the trainable parameters while a trainer is built.

    TRL converts the adapter of a quantized model to bfloat16. Near 0.01, neighbouring bfloat16 values are 6e-5 apart,
    so most updates at a learning rate of 5e-6 would be rounded away.
    """
    before = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
    yield
    for parameter, data in before:
        if parameter.dtype != data.dtype:
            parameter.data = data.to(parameter.device)


def _use_one_gpu(settings: Any) -> Any:
    """Return the settings limited to one GPU.

    Otherwise transformers multiplies the batch by the number of visible GPUs (two on Kaggle) and wraps the model in
    ``DataParallel``.
    """
    if settings.device.type == "cuda":  # reading ``device`` makes the settings count the GPUs
        settings._n_gpu = 1
    return settings


def count_one_pass(trainer: Any, policy: Policy) -> None:
    """Count the FLOPs of the trainer's first forward and backward pass. Later passes run without the counter.

    GRPO generates before the pass, so the count covers the update only. It includes attention and the second forward
    pass of gradient checkpointing, and the vision tower unless its features are cached. It excludes kernels that
    torch's counter does not support (8-bit products, the flash-attention package), and the report says so.
    """
    _note_uncounted(policy)
    loss, backward = trainer.compute_loss, trainer.accelerator.backward
    counter = flop_counter()
    before = counts()

    def counted_loss(*args: Any, **options: Any) -> Any:
        nonlocal before
        trainer.compute_loss = loss
        before = counts()
        counter.__enter__()
        try:
            result = loss(*args, **options)
        except BaseException:
            counter.__exit__(None, None, None)
            raise
        trainer.accelerator.backward = counted_backward
        return result

    def counted_backward(*args: Any, **options: Any) -> None:
        trainer.accelerator.backward = backward
        try:
            backward(*args, **options)
        finally:
            counter.__exit__(None, None, None)
        done = counts() - before
        if not done.trained_tokens:  # no completion of the pass had an advantage, so nothing was computed
            trainer.compute_loss = counted_loss
            return
        count(
            counted_tokens=done.trained_tokens,
            counted_formula=done.training,
            counted_flops=float(counter.get_total_flops()),
        )

    trainer.compute_loss = counted_loss


def _note_uncounted(policy: Policy) -> None:
    if policy.bits == 8:
        note_unmeasured("8-bit products: torch's counter does not support them")
    if "flash" in str(getattr(policy.model.config, "_attn_implementation", "")):
        note_unmeasured("the flash-attention package's kernels: torch's counter does not support them")
