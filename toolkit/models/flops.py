"""Usage hooks of a model: tokens, images, and floating-point operations (FLOPs) by formula.

The formula is in ``toolkit.runfolder.usage.counters``: 6 n per position in full training, and slightly above 4 n for
LoRA, whose gradient passes through the frozen parameters. Language model, output head and vision tower are counted
separately, each with its own positions. As in 6 n, the formula omits the products of attention, which grow with the
square of the length. It also omits modules between tower and language model. torch's counter, which the report shows
beside the formula, includes both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.models.vision_cache import GRID, find_tower, vision_cache_of
from toolkit.runfolder.usage import ParameterCount, count, note_unmeasured

MAX_UNCOUNTED = 0.05
"""The report mentions parameters outside linear layers, convolutions and embeddings above this fraction."""


def flop_counter() -> FlopCounterMode:
    """Return torch's FLOP counter, with formulas for attention on a CPU, which torch omits."""
    aten = torch.ops.aten

    def products(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> tuple[int, int]:
        batch, heads, length, width = query  # key and value may have fewer heads, which several query heads use
        pairs = 2 * batch * heads * length * key[2]
        return pairs * width, pairs * value[3]

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        scores, mixed = products(query, key, value)
        return scores + mixed

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        scores, mixed = products(query, key, value)
        return 3 * scores + 2 * mixed  # the scores are computed again

    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def parameter_counts(module: nn.Module, merged: int = 1) -> ParameterCount:
    """Return the parameter counts of linear layers and convolutions.

    Quantized layers are counted by their shape, because their storage is packed.

    Args:
        module: The module.
        merged: Number of positions that a merger joins into one. Its parameters count 1 / ``merged`` per position.
    """
    sizes = [
        (_size(part) // (merged if "merger" in name else 1), part.weight.requires_grad)
        for name, part in module.named_modules()
        if _size(part)
    ]
    return ParameterCount(sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))


def register_usage_hooks(model: Any) -> None:
    """Count every pass of the model from now on. See ``toolkit.runfolder.usage.counters``."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = whole.get_decoder() if hasattr(whole, "get_decoder") else None
    if decoder is None:
        note_unmeasured("the language model, because the architecture does not name it: no tokens, no FLOPs")
        return
    _note_uncounted(decoder)
    weights = parameter_counts(decoder)
    decoder.register_forward_hook(lambda module, args, output: _language(module, weights, output))
    head = whole.get_output_embeddings()
    if head is not None:
        head_weights = parameter_counts(head)
        head.register_forward_hook(lambda module, args, output: _head(whole, head_weights, output))
        whole.register_forward_pre_hook(
            lambda module, args, fields: _chunked_head(module, head_weights, fields), with_kwargs=True
        )
    tower = find_tower(whole)
    if tower is not None:
        merged = int(getattr(tower, "spatial_merge_size", 1)) ** 2  # Qwen's towers merge squares of patches
        tower_weights = parameter_counts(tower, merged)
        tower.register_forward_hook(
            lambda module, args, fields, output: _vision(module, tower_weights, (args, fields), output),
            with_kwargs=True,
        )


def _language(module: nn.Module, weights: ParameterCount, output: Any) -> None:
    hidden = _hidden(output)
    positions = hidden.shape[:-1].numel()
    if hidden.requires_grad:
        done = weights.forward_backward(positions, checkpointing=_checkpoints(module))
        count(trained_tokens=positions, language_training=done)
    else:
        # One position per row is a decoding step, because every prompt is longer.
        kind = "generated_tokens" if hidden.shape[-2] == 1 else "read_tokens"
        count(**{kind: positions}, language_inference=weights.forward(positions))


def _head(whole: nn.Module, weights: ParameterCount, logits: torch.Tensor) -> None:
    positions = logits.shape[:-1].numel()
    if logits.requires_grad:
        count(language_training=weights.forward_backward(positions, checkpointing=False))
    else:
        count(language_inference=weights.forward(positions))


def _chunked_head(whole: nn.Module, weights: ParameterCount, fields: Mapping[str, Any]) -> None:
    """Count the output head in the SFT loss, which uses its weight at supervised positions only (see ``sft_loss``)."""
    labels = fields.get("labels")
    if labels is not None and torch.is_grad_enabled():
        answered = int((labels[..., 1:] != -100).sum())
        count(language_training=weights.forward_backward(answered, checkpointing=False))


def _vision(module: nn.Module, weights: ParameterCount, given: tuple[Any, Mapping[str, Any]], output: Any) -> None:
    cache, hidden = vision_cache_of(module), _hidden(output)
    computed = None if cache is None else cache.last
    images, patches = _images_and_patches(given, output) if computed is None else computed
    if not torch.is_grad_enabled():
        count(read_images=images, read_patches=patches, vision_inference=weights.forward(patches))
        return
    backward = hidden.requires_grad
    done = (
        weights.forward_backward(patches, checkpointing=_checkpoints(module)) if backward else weights.forward(patches)
    )
    count(trained_images=images, trained_patches=patches, vision_training=done)


def _images_and_patches(given: tuple[Any, Mapping[str, Any]], output: Any) -> tuple[int, int]:
    """Return the numbers of images and patches. Qwen's towers get rows of patches and a grid, others an image batch."""
    args, fields = given
    values = [*args, *fields.values()]
    grid = fields.get(GRID, args[1] if len(args) > 1 else None)
    if isinstance(grid, torch.Tensor) and grid.ndim == 2 and grid.shape[-1] == 3:
        return len(grid), int(values[0].shape[0])
    hidden = _hidden(output)
    return int(hidden.shape[0]), hidden.shape[:-1].numel()


def _hidden(output: Any) -> torch.Tensor:
    """Return the hidden states of a module, shape (..., width)."""
    hidden = output if isinstance(output, torch.Tensor) else output[0]
    assert isinstance(hidden, torch.Tensor)
    return hidden


def _size(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module.weight.numel()
    return 0


def _checkpoints(module: nn.Module) -> bool:
    return module.training and any(getattr(part, "gradient_checkpointing", False) for part in module.modules())


def _note_uncounted(decoder: nn.Module) -> None:
    """Note parameters that the formula omits, such as experts that are not linear layers."""
    known = sum(_size(part) for part in decoder.modules())
    owned = (p for part in decoder.modules() for p in part.parameters(recurse=False) if _is_matrix(part, p))
    others = sum(parameter.numel() for parameter in owned)
    if others > MAX_UNCOUNTED * (known + others):
        fraction = others / (known + others)
        note_unmeasured(
            f"{fraction:.0%} of the language model's parameters are outside linear layers: not in the formula"
        )


def _is_matrix(module: nn.Module, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not isinstance(module, nn.Embedding) and not _size(module)
