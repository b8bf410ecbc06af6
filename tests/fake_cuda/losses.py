"""The losses of SFT and GRPO as the toolkit computes them, on the simulated device."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from tests.fake_cuda.log import DEVICE, known_tensor
from tests.fake_cuda.stage import Batch, Stage
from toolkit.planning.stages import Setting

Loss = Callable[[Stage, Batch], torch.Tensor]


def loss_of(setting: Setting) -> Loss | None:
    """Return the loss of a stage. None: no training."""
    if not setting.trains:
        return None
    if setting.backend == "hf":
        return sft_loss if setting.stage == "sft" else grpo_loss
    from tests.fake_cuda import unsloth

    return unsloth.sft_loss if setting.stage == "sft" else unsloth.grpo_loss


def sft_loss(stage: Stage, batch: Batch) -> torch.Tensor:
    """TRL's ``chunked_nll`` on the answer's tokens, with the toolkit's slices in it (``training.sft_loss``)."""
    from trl.trainer import sft_trainer

    from toolkit.training.sft_loss import in_place_of_trl

    base = stage.model.get_base_model()
    if not hasattr(base, "patched_by_the_trace"):
        sft_trainer._patch_chunked_ce_lm_head(base, sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE, is_vlm=True)
        base.patched_by_the_trace = True
    with in_place_of_trl(), stage.autocast():
        return stage.call(batch, labels=labels_of(stage, batch)).loss  # type: ignore[no-any-return]


def labels_of(stage: Stage, batch: Batch) -> torch.Tensor:
    """Return labels that cover only the answers."""
    with unset_fake_temporarily():
        labels = batch.texts["input_ids"].known.clone()  # type: ignore[attr-defined]
        labels[:, : stage.setting.row.prompt] = -100
    return known_tensor(labels)


def grpo_loss(stage: Stage, batch: Batch) -> torch.Tensor:
    """TRL's log-probabilities and entropies through the toolkit's trainer, and the clipped loss on them."""
    from toolkit.training.grpo_trainer import PolicyTrainer

    trainer = PolicyTrainer.__new__(PolicyTrainer)
    trainer.model_kwarg_keys, trainer.temperature = {"logits_to_keep"}, 1.0
    trainer.processing_class = SimpleNamespace(image_processor=None)
    trainer.__dict__["_entropy_bonus_enabled"] = False
    fields: dict[str, Any] = {name: value for name, value in batch.texts.items() if name.endswith("type_ids")}
    if batch.pixels:
        fields |= {**batch.pixels, "num_images": [stage.setting.row.image_count] * stage.setting.rows}
    logps, _, _ = trainer._get_per_token_logps_and_entropies(
        stage.wrapped(),
        batch.texts["input_ids"],
        batch.texts["attention_mask"],
        stage.setting.answer_tokens,
        compute_entropy=True,
        **fields,
    )
    return clipped_loss(stage, batch, logps)


def clipped_loss(stage: Stage, batch: Batch, logps: torch.Tensor) -> torch.Tensor:
    """Return GRPO's loss of log-probabilities (rows x tokens)."""
    advantages = torch.ones(stage.setting.rows, 1, device=DEVICE)
    mask = batch.texts["attention_mask"][:, -stage.setting.answer_tokens :]
    ratio = torch.exp(logps - logps.detach())
    clipped = torch.clamp(ratio, 0.8, 1.2)
    return (-torch.min(ratio * advantages, clipped * advantages) * mask).sum() / 128.0
