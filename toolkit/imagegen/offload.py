"""Scoring models on the GPU while they compute, and in RAM otherwise.

An update of the generator needs most of a small GPU. Scoring models are idle in the meantime, and copying them takes
seconds where a round takes minutes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


@contextmanager
def on_device(device: torch.device, *modules: nn.Module) -> Iterator[None]:
    """Give modules copies of their tensors on a device, and their own tensors again when the context ends.

    Trained parameters and buffers keep the values that they got in the context. Tensors that are on the device already
    stay there, such as those of a shared encoder in an outer context. An optimizer must be built in the context.
    """
    places = [place for module in modules for place in _tensors(module) if place[2].device.type != device.type]
    copies: dict[int, Tensor] = {}
    for module, name, home in places:
        # A tensor that several modules have is copied once, so that tied parameters stay tied.
        if id(home) not in copies:
            copies[id(home)] = _copied(home, device)
        setattr(module, name, copies[id(home)])
    try:
        yield
    finally:
        for module, name, home in places:
            if not isinstance(home, nn.Parameter) or home.requires_grad:
                home.data.copy_(copies[id(home)])
            setattr(module, name, home)
        copies.clear()
        if places and device.type == "cuda":
            # Otherwise the allocator keeps the blocks, in sizes that an update cannot use.
            torch.cuda.empty_cache()


def _tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield each parameter and buffer with its module and its name in that module."""
    for one in module.modules():
        own = chain(one.named_parameters(recurse=False, remove_duplicate=False), one.named_buffers(recurse=False))
        for name, tensor in own:
            yield one, name, tensor


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    moved = tensor.detach().to(device)
    return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
