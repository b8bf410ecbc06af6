"""Gradient checkpointing without gradients that nobody needs."""

from typing import Any


def disable_input_gradients(model: Any) -> None:
    """Leave the outputs of embeddings without a gradient, for good.

    TRL and transformers have them require one whenever checkpointing is switched on, since reentrant checkpointing
    passes no gradient into a layer whose inputs require none. Ours is not reentrant, and needs none of it. Done all the
    same, a frozen vision tower, which has an embedding of its own (of patches), keeps its activations and is walked
    through backward for nothing; and each rollout of GRPO, which switches checkpointing off and on, would hang another
    set of hooks on the embeddings.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(base, "disable_input_require_grads"):
        base.disable_input_require_grads()
    base.enable_input_require_grads = _nothing


def _nothing() -> None:
    """In the place of ``enable_input_require_grads``."""
