"""A dispatch mode that logs every storage on the simulated device: its size, allocation, release and operation.

It also counts, by phase, what a model of time needs: FLOPs, bytes moved and kernels launched.
"""

import functools
import math
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from tests.fake_cuda.allocator import Event
from tests.fake_cuda.kernels import gemm_4bit

DEVICE = "cuda"
KNOWN_NUMBERS = 1_000_000
"""Integer tensors up to this number of elements are also computed, so that code that reads them branches correctly."""
RANDOM = ("aten.rand", "aten.normal", "aten.uniform", "aten.bernoulli", "aten.empty", "aten.multinomial")
FACTORIES = ("arange", "full", "zeros", "ones", "scalar_tensor", "lift_fresh")
FREE_OF_CHARGE = (
    "aten.detach", "aten.alias", "aten._unsafe_view", "aten.is_", "aten._local", "prim", "aten.empty", "aten.sym",
)  # fmt: skip
"""Operations other than views that launch no kernel."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """One storage of ``size`` bytes."""

    number: int
    size: int
    operation: str
    shape: tuple[int, ...]
    dtype: str
    phase: str


@dataclass(slots=True)
class Counts:
    """Work of one phase."""

    kernels: int = 0
    """Dispatched operations other than views. Each launches at least one kernel."""
    bytes: int = 0
    """Bytes of their inputs and outputs, each read or written once."""
    flops: int = 0


def tensors(tree: Any) -> list[torch.Tensor]:
    """Return the tensors in a nested structure."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class AllocationLog(TorchDispatchMode):
    """The log. ``events`` holds allocations (True) and releases (False) in their order.

    Use it inside a ``FakeTensorMode``. ``phase`` names what is being traced.
    """

    def __init__(self, multiprocessors: int = 80, capability: tuple[int, int] = (8, 9)) -> None:
        super().__init__()
        self.phase = "start"
        self.events: list[tuple[bool, Allocation]] = []
        self.counts: dict[str, Counts] = {}
        self.operations: Counter[tuple[str, str]] = Counter()
        self.guessed: Counter[str] = Counter()
        """Scalars that code read although they are not known, by phase; each was read as 0 or False."""
        self.gpu = (multiprocessors, *capability)
        self._alive: dict[int, tuple[Any, Allocation]] = {}
        self._number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, silent = _facts(function)
        given = tensors((args, kwargs))
        if name == "bitsandbytes.gemm_4bit.default":
            return self._gemm_4bit(name, args, kwargs)
        output = self._run(function, name, given, args, kwargs)
        made = tensors(output)
        if not silent:
            self._count(name, _bytes(given) + _bytes(made), _flops(function, name, args, kwargs, output))
        held = {id(one.untyped_storage()) for one in given}
        for one in made:
            if id(one.untyped_storage()) not in held:
                self._note(one, name)
        return output

    def _gemm_4bit(self, name: str, args: Any, kwargs: Any) -> torch.Tensor:
        fused, output = gemm_4bit(self, args, kwargs, self.gpu)
        packed = args[1].numel() * args[1].element_size()
        if fused:
            self._count(name, packed + _bytes((args[0], output)), 2 * args[0].numel() * args[2][0])
            self._note(output, name)
        else:  # the product itself was counted as torch's
            self._count("dequantization", packed * (1 + 2 * args[0].element_size()), 0)
        return output

    def alive(self, *phases: str) -> int:
        """Return the bytes on the device that were made in these phases (default: any) and are alive."""
        return sum(one.size for _, one in self._alive.values() if not phases or one.phase in phases)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Trace under the name of another phase."""
        before, self.phase = self.phase, phase
        yield
        self.phase = before

    def _count(self, name: str, moved: int, flops: int) -> None:
        counts = self.counts.setdefault(self.phase, Counts())
        counts.kernels += 1
        counts.bytes += moved
        counts.flops += flops
        self.operations[(self.phase, name)] += 1

    def _note(self, tensor: torch.Tensor, name: str) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if tensor.device.type != DEVICE or key in self._alive or not (size := storage.nbytes()):
            return
        self._number += 1
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        one = Allocation(self._number, size, name, shape, dtype, self.phase)
        self._alive[key] = (weakref.ref(storage, lambda _: self._gone(key)), one)
        self.events.append((True, one))

    def _gone(self, key: int) -> None:
        self.events.append((False, self._alive.pop(key)[1]))

    def _run(self, function: Any, name: str, given: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
        if name == "aten._local_scalar_dense.default":
            return self._scalar(args[0])
        if name == "aten.convolution.default":
            return _convolution(*args[:5])
        real = _real(function, name, given, args, kwargs)
        try:
            output = function(*args, **kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException):
            output = _by_known_numbers(function, name, args, kwargs, real)
        if real is not None:
            for fake, known in zip(tensors(output), tensors(real), strict=False):
                if isinstance(fake, FakeTensor) and (not known.is_floating_point() or known.numel() <= 4):
                    fake.known = known  # type: ignore[attr-defined]
        return output

    def _scalar(self, tensor: torch.Tensor) -> Any:
        known = getattr(tensor, "known", None)
        if known is None:
            self.guessed[self.phase] += 1
            return False if tensor.dtype == torch.bool else 0
        with unset_fake_temporarily():
            return known.item()


def known_tensor(value: torch.Tensor) -> torch.Tensor:
    """Return a fake tensor on the device whose numbers are known."""
    fake = torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
    fake.known = value  # type: ignore[attr-defined]
    return fake


def peak(events: Sequence[tuple[bool, Allocation]], *phases: str) -> tuple[int, dict[int, Allocation]]:
    """Return the most bytes allocated at once during these phases, and the storages that were alive then."""
    now = most = at = 0
    for index, (came, one) in enumerate(events):
        now += one.size if came else -one.size
        if came and now > most and one.phase in phases:
            most, at = now, index
    alive: dict[int, Allocation] = {}
    for came, one in events[: at + 1]:
        if came:
            alive[one.number] = one
        else:
            alive.pop(one.number, None)
    return most, alive


def as_events(logged: Sequence[tuple[bool, Allocation]]) -> list[Event]:
    """Return the log as the allocator's replay reads it."""
    return [Event(one.number, one.size if came else 0) for came, one in logged]


@functools.cache
def _facts(function: Any) -> tuple[str, bool]:
    """Return the name of an operation, and whether it launches no kernel."""
    name = str(function)
    return name, bool(getattr(function, "is_view", False)) or name.startswith(FREE_OF_CHARGE)


def _real(function: Any, name: str, given: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
    """Return the operation on known numbers. None if some are unknown, it is too large, or needs CUDA."""
    if any(isinstance(one, FakeTensor) and getattr(one, "known", None) is None for one in given):
        return None
    if not given and (name.split(".")[1] not in FACTORIES or math.prod(_size_of(name, args)) > KNOWN_NUMBERS):
        return None
    if name.startswith(RANDOM):
        return None
    with unset_fake_temporarily():
        args, kwargs = tree_map(_known, (args, kwargs))
        if any(one.numel() > KNOWN_NUMBERS for one in tensors((args, kwargs))):
            return None
        try:
            found = function(*args, **kwargs)
        except (RuntimeError, NotImplementedError, TypeError):  # an operation without a CPU kernel
            return None
    return None if any(one.numel() > KNOWN_NUMBERS for one in tensors(found)) else found


def _size_of(name: str, args: Any) -> Sequence[int]:
    return args[0] if args and isinstance(args[0], list | tuple) and "arange" not in name else ()


def _known(leaf: Any) -> Any:
    if isinstance(leaf, FakeTensor):
        return leaf.known  # type: ignore[attr-defined]
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


def _by_known_numbers(function: Any, name: str, args: Any, kwargs: Any, real: Any) -> Any:
    """Return the output of an operation whose shape depends on values."""
    if real is not None:
        return tree_map(
            lambda one: torch.empty(one.shape, dtype=one.dtype, device=DEVICE) if torch.is_tensor(one) else one, real
        )
    if not name.startswith("aten.index"):
        raise RuntimeError(f"{name}: the shape of its output follows from numbers that are not known")
    places: list[Any] = []
    for index in args[1]:
        if index is not None and index.dtype == torch.bool:
            with unset_fake_temporarily():
                found = index.known.nonzero(as_tuple=True)
            places += [torch.empty(one.shape, dtype=torch.long, device=DEVICE) for one in found]
        else:
            places.append(index)
    return function(args[0], places, *args[2:], **kwargs)


def _convolution(x: torch.Tensor, weight: torch.Tensor, bias: Any, stride: Any, padding: Any) -> torch.Tensor:
    """Compute a patch embedding, for which FakeTensorMode would query CUDA for the output layout."""
    dimensions = x.dim() - 2
    stride, padding = (list(one) * (dimensions if len(one) == 1 else 1) for one in (stride, padding))
    sides = [
        (length + 2 * pad - kernel) // step + 1
        for length, kernel, step, pad in zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    ]
    return torch.empty(x.shape[0], weight.shape[0], *sides, dtype=x.dtype, device=x.device)


def _bytes(tree: Any) -> int:
    return sum(one.numel() * one.element_size() for one in tensors(tree))


def _flops(function: Any, name: str, args: Any, kwargs: Mapping[str, Any], output: Any) -> int:
    if name == "aten.convolution.default":
        return int(2 * output.numel() * math.prod(args[1].shape[1:]))
    if "scaled_dot_product" in name:  # torch's formula knows no grouped queries; backward recomputes the scores
        backward = "backward" in name
        query, key = args[int(backward)], args[int(backward) + 1]
        return int((10 if backward else 4) * math.prod(query.shape) * key.shape[2])
    formula = flop_registry.get(function.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=output))
