"""Unsloth's own losses on the simulated device: what a recipe runs on a GPU.

Its modules are imported as on a machine without a GPU. A patch reports the free memory of the simulated GPU to them.
They run without torch.compile, which needs Triton. Their figures are therefore upper bounds.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from tests.fake_cuda.losses import clipped_loss, labels_of
from tests.fake_cuda.stage import Batch, Stage

CHUNKS = 4
"""Slices of a row's logits in GRPO (``autotune_batch_and_chunks`` of unsloth_zoo, up to 16384 tokens)."""


ENVIRONMENT = {
    "UNSLOTH_ALLOW_CPU": "1",
    "UNSLOTH_IS_PRESENT": "1",
    "UNSLOTH_COMPILE_DISABLE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


def load() -> None:
    """Import unsloth_zoo, which also patches transformers. The rollout is traced before, with transformers' code."""
    os.environ |= ENVIRONMENT
    with _disable_current_modes():
        import unsloth_zoo.fused_losses.cross_entropy_loss
        import unsloth_zoo.rl_replacements  # noqa: F401


def sft_loss(stage: Stage, batch: Batch) -> torch.Tensor:
    """Compute the fused cross-entropy over all positions, in slices that fit the free GPU memory."""
    load()
    from unsloth_zoo.fused_losses.cross_entropy_loss import unsloth_fused_ce_loss

    base = stage.model.get_base_model()
    with stage.autocast():
        hidden = _hidden_states(stage, batch)
        with _free_memory(stage):
            return unsloth_fused_ce_loss(  # type: ignore[no-any-return]
                None, hidden, base.get_output_embeddings().weight, None, labels_of(stage, batch), torch_compile=False
            )


def grpo_loss(stage: Stage, batch: Batch) -> torch.Tensor:
    """Compute log-probabilities from hidden states in slices, and the clipped loss."""
    load()
    from unsloth_zoo.rl_replacements import chunked_hidden_states_selective_log_softmax

    tokens = stage.setting.answer_tokens
    head = stage.model.get_base_model().get_output_embeddings().weight
    with stage.autocast():
        hidden = _hidden_states(stage, batch)[:, -(tokens + 1) :, :][:, :-1, :]
        logps = chunked_hidden_states_selective_log_softmax(
            hidden, head, batch.texts["input_ids"][:, -tokens:], CHUNKS * stage.setting.rows
        )
    return clipped_loss(stage, batch, logps)


def _hidden_states(stage: Stage, batch: Batch) -> torch.Tensor:
    """Return the output of its compiled modules, which replaces logits."""
    base = stage.model.get_base_model()
    hidden: torch.Tensor = base.model(**batch.texts, **batch.pixels, use_cache=False).last_hidden_state
    return hidden


@contextlib.contextmanager
def _free_memory(stage: Stage) -> Iterator[None]:
    """``torch.cuda.mem_get_info`` as on the recipe's GPU."""
    from unsloth_zoo import tiled_mlp

    before: Any = torch.cuda.is_available, torch.cuda.mem_get_info, tiled_mlp.DEVICE_TYPE
    torch.cuda.is_available = lambda: True
    torch.cuda.mem_get_info = lambda *_: (stage.usable - stage.log.alive(), stage.usable)
    tiled_mlp.DEVICE_TYPE = "cuda"
    try:
        yield
    finally:
        torch.cuda.is_available, torch.cuda.mem_get_info, tiled_mlp.DEVICE_TYPE = before
