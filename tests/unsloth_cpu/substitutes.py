"""The complete table of substitutes for CUDA functions, and their installation."""

import functools
import importlib
import json
import os
import types
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tests.unsloth_cpu.gpu import Gpu

ENVIRONMENT: Mapping[str, str] = {
    "TORCHDYNAMO_DISABLE": "1",  # compiling for a CPU takes minutes
    "UNSLOTH_ENABLE_FLEX_ATTENTION": "0",  # flex attention needs torch.compile
    "UNSLOTH_DISABLE_VENDORED_FLA": "1",  # kernels in Triton for linear attention (Qwen3.5). transformers has its own
    "HF_DEACTIVATE_ASYNC_LOAD": "1",  # a mode of torch is in force in one thread, and transformers uses several
    "TRITON_LIBCUDA_PATH": os.devnull,  # otherwise `import unsloth` calls ldconfig to find libcuda
}
"""Settings of libraries that must be set before they are imported."""

COUNTS = "UNSLOTH_CPU_COUNTS"
"""Environment variable with the file that receives how often each substitute was called."""

counts: Counter[str] = Counter()
"""Substitute -> number of calls."""


@dataclass(frozen=True, slots=True)
class Substitute:
    """One replaced attribute: dotted name, reason, result in words, and the replacement."""

    name: str
    why: str
    result: str
    make: Callable[[Gpu, Any], Any]
    """(GPU, original) -> replacement."""
    applies: Callable[..., bool] = lambda *args, **options: True
    """Whether it replaces a call with these arguments. Otherwise the original is called."""
    essential: bool = False
    """Whether every run that trains through Unsloth must use it."""


def _is_cuda_type(device_type: Any = "cuda", *_: Any, **__: Any) -> bool:
    return str(device_type).startswith("cuda")


def _constant(value: Any) -> Callable[[Gpu, Any], Any]:
    return lambda gpu, original: lambda *args, **options: value


def _of(choose: Callable[[Gpu], Any]) -> Callable[[Gpu, Any], Any]:
    return lambda gpu, original: lambda *args, **options: choose(gpu)


def _properties(gpu: Gpu) -> types.SimpleNamespace:
    major, minor = gpu.capability
    return types.SimpleNamespace(
        name=gpu.name,
        total_memory=round(gpu.gibibytes * 2**30),
        major=major,
        minor=minor,
        multi_processor_count=40,
        warp_size=32,
        regs_per_multiprocessor=65536,
        shared_memory_per_block_optin=65536,
        max_threads_per_multi_processor=1024,
        L2_cache_size=2**22,
        gcnArchName="",
        is_integrated=False,
        uuid="substitute",
    )


def _memory_info(gpu: Gpu) -> tuple[int, int]:
    total = round(gpu.gibibytes * 2**30)
    return total, total


def _on_cpu(gpu: Gpu, original: Any) -> Any:
    """Return the original with the CPU as its device."""
    return lambda device_type="cuda": original("cpu")


def _autocast(gpu: Gpu, original: Any) -> Any:
    return lambda self, device_type, *args, **options: original(self, "cpu", *args, **options)


def _random_state(gpu: Gpu, original: Any) -> Any:
    return lambda *args, **options: torch.zeros(16, dtype=torch.uint8)


def _no_kernel(name: str) -> Callable[[Gpu, Any], Any]:
    def missing(*args: Any, **options: Any) -> None:
        raise RuntimeError(f"{name} is a CUDA kernel of bitsandbytes, and this harness has none")

    missing.restype = None  # type: ignore[attr-defined]  # Unsloth recognizes native functions by it
    return lambda gpu, original: missing


QUERIES = (
    Substitute("torch.cuda.is_available", "decides about every GPU path", "True", _constant(True), essential=True),
    Substitute(
        "torch.cuda.device_count", "the toolkit and Unsloth look for one GPU", "1", _constant(1), essential=True
    ),
    Substitute("torch.cuda.current_device", "device maps name it", "0", _constant(0), essential=True),
    Substitute("torch.cuda.set_device", "accelerate chooses the device", "nothing", _constant(None)),
    Substitute("torch.cuda.get_device_properties", "size and name of the GPU", "those of Gpu", _of(_properties)),
    Substitute(
        "torch.cuda.get_device_capability",
        "Unsloth derives bfloat16 support from it",
        "that of Gpu",
        _of(lambda gpu: gpu.capability),
        essential=True,
    ),
    Substitute("torch.cuda.get_device_name", "shown by Unsloth's banner", "that of Gpu", _of(lambda gpu: gpu.name)),
    Substitute(
        "torch.cuda.is_bf16_supported",
        "chooses bfloat16 or the float32 of a T4",
        "whether the capability is 8.0 or more",
        # Unsloth's own wrapper inspects the signature for this name.
        lambda gpu, original: lambda including_emulation=True: gpu.bfloat16,
        essential=True,
    ),
    Substitute("torch.cuda.mem_get_info", "free GPU memory, for device maps", "all is free", _of(_memory_info)),
    Substitute("torch.cuda.memory_stats", "peaks for the record", "none", _of(lambda gpu: {})),
    *(
        Substitute(f"torch.cuda.{name}", "peaks for the record", "0", _constant(0))
        for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")
    ),
    *(
        Substitute(f"torch.cuda.{name}", "a CPU has nothing to do here", "nothing", _constant(None))
        for name in ("synchronize", "empty_cache", "reset_peak_memory_stats", "set_per_process_memory_fraction")
    ),
    Substitute(
        "torch.cuda.is_current_stream_capturing", "torch's optimizers look for CUDA graphs", "False", _constant(False)
    ),
    *(
        Substitute(f"torch.cuda.{name}", "checkpoints have the GPU's random state", "16 zeros", _random_state)
        for name in ("get_rng_state", "random.get_rng_state")
    ),
    *(
        Substitute(f"torch.cuda.{name}", "the GPU's random state is restored", "nothing", _constant(None))
        for name in ("set_rng_state", "random.set_rng_state")
    ),
    Substitute(
        "ctypes.CDLL.__init__",
        "toolkit plan looks for the GPU's driver before it imports torch",
        "an empty library, for libcuda.so.1 alone",
        _constant(None),
        applies=lambda self, name=None, *args, **options: name == "libcuda.so.1",
    ),
)
PLACES = (
    Substitute(
        "torch._C._cuda_getCurrentRawStream", "Unsloth keeps each GPU's stream for its kernels", "0", _constant(0)
    ),
    Substitute(
        "triton.backends.nvidia.driver.CudaDriver.is_active",
        "Triton would build its driver because CUDA is simulated",
        "False, as on any machine without a GPU",
        _constant(False),
    ),
    Substitute(
        "torch.autocast.__init__",
        "mixed precision is requested for the GPU, and the tensors are on the CPU",
        "autocast of the CPU in the same dtype",
        _autocast,
        applies=lambda self, device_type, *args, **options: _is_cuda_type(device_type),
    ),
    Substitute("torch.is_autocast_enabled", "follows torch.autocast", "the state of the CPU's", _on_cpu, _is_cuda_type),
    Substitute("torch.get_autocast_dtype", "follows torch.autocast", "the dtype of the CPU's", _on_cpu, _is_cuda_type),
    Substitute("torch.get_autocast_gpu_dtype", "follows torch.autocast", "the dtype of the CPU's", _on_cpu),
)
KERNELS = tuple(
    Substitute(
        f"bitsandbytes.functional.lib.{name}",
        "Unsloth quantizes only if bitsandbytes has this CUDA kernel; 4 and 8 bit then use the kernels for CPUs",
        "an error if it is called",
        _no_kernel(name),
    )
    for name in (
        "cdequantize_blockwise_fp32",
        "cdequantize_blockwise_fp16_nf4",
        "cdequantize_blockwise_bf16_nf4",
        "cdequantize_blockwise_fp32_nf4",
        "cgemm_4bit_inference_naive_fp16",
        "cgemm_4bit_inference_naive_bf16",
    )
)
DEVICE = Substitute(
    "device cuda",
    "models and batches are moved to the GPU, host buffers are pinned",
    "the CPU, and memory that is not pinned, in every torch function",
    lambda gpu, original: None,
    essential=True,
)
"""Installed as a mode of torch, not as an attribute."""

SUBSTITUTES: tuple[Substitute, ...] = (*QUERIES, *PLACES, *KERNELS, DEVICE)
"""All of them."""


class _CudaIsCpu(TorchFunctionMode):
    """``DEVICE``: every torch function that names a CUDA device or pinned memory gets the CPU's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            counts[DEVICE.name] += 1
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            counts[DEVICE.name] += 1
            args = (args[0], torch.device("cpu"), *args[2:])
        if _is_cuda(kwargs.get("device")):
            counts[DEVICE.name] += 1
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if kwargs.get("pin_memory"):
            counts[DEVICE.name] += 1
            kwargs = {**kwargs, "pin_memory": False}
        return func(*args, **kwargs)


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) and not isinstance(device, bool)  # the number of a CUDA device


def install(gpu: Gpu) -> None:
    """Install every substitute until the process ends.

    Raises:
        AttributeError: A library no longer has an attribute of the table.
    """
    import bitsandbytes  # noqa: F401  # before CUDA is simulated: it chooses its native library by that

    os.environ.update(ENVIRONMENT)
    for one in (*QUERIES, *PLACES, *KERNELS):
        _replace(one, gpu)
    _CudaIsCpu().__enter__()  # type: ignore[no-untyped-call]


def write_counts() -> None:
    """Write the calls of each substitute to the file in the environment variable ``COUNTS``, if it is set."""
    if file := os.environ.get(COUNTS):
        found = {one.name: counts[one.name] for one in SUBSTITUTES}
        Path(file).write_text(json.dumps(found, indent=1), encoding="utf-8")


def _replace(one: Substitute, gpu: Gpu) -> None:
    path, _, last = one.name.rpartition(".")
    holder = _find(path)
    original: Any = None if one in KERNELS else getattr(holder, last)
    replacement = one.make(gpu, original)

    @functools.wraps(replacement)
    def counted(*args: Any, **options: Any) -> Any:
        if not one.applies(*args, **options):
            return original(*args, **options)
        counts[one.name] += 1
        return replacement(*args, **options)

    setattr(holder, last, counted)


def _find(path: str) -> Any:
    """Return the module, class or object with a dotted name."""
    head, *rest = path.split(".")
    found = importlib.import_module(head)
    for name in rest:
        found = getattr(found, name)
    return found
