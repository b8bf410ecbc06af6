"""Kernels that a GPU would run, and their allocations: 4-bit products and attention."""

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import torch

FUSED_ROWS = 1536
"""Above this many rows bitsandbytes always dequantizes (``bitsandbytes/backends/cuda/ops.py``)."""


def gemm_4bit(mode: Any, args: Any, kwargs: Any, gpu: tuple[int, int, int]) -> tuple[bool, torch.Tensor]:
    """Return whether bitsandbytes' fused kernel multiplies, and the product on the simulated device.

    If it does not, the matrix is dequantized into a temporary of its full size, and torch multiplies.
    ``mode`` logs what is allocated on the way.
    """
    x, _, shape, _, blocksize = args[:5]
    inputs, outputs = x.shape[-1], shape[0]
    rows = x.numel() // inputs
    if rows <= FUSED_ROWS and inputs % blocksize == 0 and _chooser(gpu)(0, x.dtype, rows, outputs, inputs):
        return True, torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    with mode:
        scales = kwargs.get("absmax_8bit")
        if scales is not None:
            wide = torch.empty_like(scales, dtype=torch.float32)
            wide = wide + kwargs["absmax_offset"]
        matrix = torch.empty(*shape, dtype=x.dtype, device=x.device)
        return False, torch.nn.functional.linear(x, matrix, kwargs.get("bias"))


_CHOOSERS: dict[tuple[int, int, int], Callable[..., bool]] = {}


def _chooser(gpu: tuple[int, int, int]) -> Callable[..., bool]:
    """Return the rule of bitsandbytes. Its module needs CUDA, so this function compiles the rule from the source."""
    if gpu not in _CHOOSERS:
        source = Path(inspect.getfile(bitsandbytes)).parent / "backends/cuda/ops.py"
        tree = ast.parse(source.read_text(encoding="utf-8"))
        wanted = ("_gemm_4bit_use_custom_cuda",)
        kept = [one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name in wanted]
        for one in kept:
            one.decorator_list = []
        constants = [one for one in tree.body if isinstance(one, ast.Assign) and "_GEMM_4BIT" in ast.unparse(one)]
        names: dict[str, Any] = {"torch": torch, "_gpu_dispatch_props": lambda index: gpu}
        exec(compile(ast.Module([*constants, *kept], []), str(source), "exec"), names)
        _CHOOSERS[gpu] = names["_gemm_4bit_use_custom_cuda"]
    return _CHOOSERS[gpu]


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` as CUDA computes it: flash without a mask, otherwise the
    memory-efficient kernel, whose mask is padded to a multiple of 8.
    """
    if torch.is_autocast_enabled("cuda") and query.dtype == torch.float32:
        half = torch.get_autocast_dtype("cuda")
        query, key, value = (one.to(half) for one in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(half)
    flash = attn_mask is None and query.dtype != torch.float32
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not flash:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    width = query.shape[-1]
    needs_grad = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
    if attn_mask is None and width % 8:
        query, key, value = (torch.nn.functional.pad(one, (0, 8 - width % 8)) for one in (query, key, value))
    aten = torch.ops.aten
    if flash:
        found = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)
        return _first(found, width)
    if attn_mask is not None:
        attn_mask = _aligned(attn_mask, query, key.shape[2])
    found = aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, needs_grad, dropout_p, is_causal, scale=scale
    )
    return _first(found, width)


def _first(found: tuple[torch.Tensor, ...], width: int) -> torch.Tensor:
    """Return the output of a kernel without padding. The other tensors are for the backward pass."""
    return found[0][..., :width]


def _aligned(mask: torch.Tensor, query: torch.Tensor, length: int) -> torch.Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    last = mask.shape[-1]
    if last % 8 or query.shape[2] == 1:  # decode steps allocate alike, also the one of eight whose mask is aligned
        mask = torch.nn.functional.pad(mask, (0, 8 - last % 8))[..., :last]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], length)
