"""GPUs: the one of this machine or a described one, with peak rates from data sheets.

Figures are those of NVIDIA's data sheets and architecture whitepapers (Turing, Ampere GA100 and GA102, Ada, Hopper,
Blackwell). Tensor figures are dense (without sparsity), in half precision with float32 accumulation: GeForce GPUs of
the Ampere, Ada and Blackwell generations run that at half the rate of float16 accumulation.
"""

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
USABLE = 0.92
"""Fraction of the nominal GPU memory that a program can use: 14.7 GiB of the 16 GB of a T4."""
AMD = Path("/dev/kfd")
"""Device file of AMD's driver, whose GPUs torch lists as CUDA devices."""


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """Peak rates of one GPU."""

    name: str
    memory: int
    """Nominal GB."""
    tensor: float
    """TFLOP/s of dense matrix products in half precision with float32 accumulation. Without tensor cores, the rate of
    float32."""
    float32: float
    """TFLOP/s of float32 outside tensor cores. torch disables TF32 for matrix products by default."""
    bandwidth: float
    """GB/s of GPU memory."""
    bf16: bool = True
    """The GPU supports bfloat16: compute capability 8.0 or higher."""

    @property
    def model(self) -> str:
        """Return the name without a memory size that only distinguishes variants."""
        return re.sub(r" \d+ GB$", "", self.name)


GPUS = (
    GpuFigures("P100", 16, 9.3, 9.3, 732, bf16=False),
    GpuFigures("V100 16 GB", 16, 125, 15.7, 900, bf16=False),
    GpuFigures("V100 32 GB", 32, 125, 15.7, 900, bf16=False),
    GpuFigures("T4", 16, 65, 8.1, 320, bf16=False),
    GpuFigures("RTX 2080 Ti", 11, 53.8, 13.4, 616, bf16=False),
    GpuFigures("A100 40 GB", 40, 312, 19.5, 1555),
    GpuFigures("A100 80 GB", 80, 312, 19.5, 1935),
    GpuFigures("A10G", 24, 70, 31.5, 600),
    GpuFigures("A10", 24, 125, 31.2, 600),
    GpuFigures("A30", 24, 165, 10.3, 933),
    GpuFigures("A40", 48, 149.7, 37.4, 696),
    GpuFigures("RTX A4000", 16, 76.7, 19.2, 448),
    GpuFigures("RTX A5000", 24, 111.1, 27.8, 768),
    GpuFigures("RTX A6000", 48, 154.8, 38.7, 768),
    GpuFigures("RTX 3060", 12, 25.6, 12.7, 360),
    GpuFigures("RTX 3070", 8, 40.6, 20.3, 448),
    GpuFigures("RTX 3080", 10, 59.5, 29.8, 760),
    GpuFigures("RTX 3090", 24, 71, 35.6, 936),
    GpuFigures("L4", 24, 121, 30.3, 300),
    GpuFigures("L40S", 48, 362, 91.6, 864),
    GpuFigures("RTX 4060 Ti", 16, 44.1, 22.1, 288),
    GpuFigures("RTX 4070 Ti Super", 16, 88.2, 44.1, 672),
    GpuFigures("RTX 4080", 16, 97.5, 48.7, 717),
    GpuFigures("RTX 4090", 24, 165.2, 82.6, 1008),
    GpuFigures("RTX 6000 Ada", 48, 364.2, 91.1, 960),
    GpuFigures("H100 PCIe", 80, 756, 51, 2000),
    GpuFigures("H100", 80, 989, 67, 3350),
    GpuFigures("H200", 141, 989, 67, 4800),
    GpuFigures("B200", 180, 2250, 75, 8000),
    GpuFigures("RTX 5080", 16, 112.6, 56.3, 960),
    GpuFigures("RTX 5090", 32, 209.5, 104.8, 1792),
)
COMMON = ("T4", "L4", "RTX 3090", "RTX 4090", "A100 40 GB")
"""GPUs that a plan without a GPU shows."""
_FILLER = frozenset({"nvidia", "tesla", "quadro", "geforce", "generation", "rtx", "gb"})
_VARIANTS = frozenset({"ti", "super", "ada", "mig", "laptop", "mobile", "max", "q"})
"""Words that name another GPU of the same number."""
_NEAR = 0.15
"""Relative difference up to which two sizes of GPU memory count as the same, such as 24 GB and 22.5 GB."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device. ``memory`` is the number of bytes that a program can use."""

    name: str
    memory: int
    bf16: bool
    """The GPU supports bfloat16: compute capability 8.0 or higher."""
    count: int = 1
    """Number of GPUs in the machine."""
    here: bool = True
    """The GPU is in this machine. False: it was described."""
    figures: tuple[GpuFigures, ...] = ()
    """Data-sheet figures of the GPU, or of all GPUs with the described size. Empty: unknown."""

    def to_json(self) -> dict[str, object]:
        """Return name, memory in GB, and where the GPU is."""
        facts = {"name": self.name, "memory_gb": round(self.memory / 1e9, 2), "bf16": self.bf16}
        return {**facts, "count": self.count, "here": self.here}


def described_gpu(gib: float) -> Gpu:
    """Return a GPU with ``gib`` GiB that is not in this machine. It is assumed to support bfloat16."""
    return Gpu(f"a GPU with {gib:g} GB", usable_bytes(gib), bf16=True, here=False, figures=gpus_of(gib))


def named_gpu(name: str) -> Gpu | None:
    """Return a GPU that is not in this machine, by its name. None: the table of data-sheet figures lacks it."""
    figures = figures_of(name)
    if figures is None:
        return None
    return Gpu(figures.name, usable_bytes(figures.memory), figures.bf16, here=False, figures=(figures,))


def usable_bytes(gib: float) -> int:
    """Return the bytes that a program can use of a nominal GPU memory of ``gib`` GiB."""
    return int(USABLE * gib * GIB)


def find_gpu() -> Gpu | None:
    """Return the current CUDA device, which a run uses. None: there is no CUDA device."""
    if not has_driver():
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    bf16 = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    figures = figures_of(facts.name, facts.total_memory / 1e9)
    known = () if figures is None else (figures,)
    return Gpu(facts.name, facts.total_memory, bf16, torch.cuda.device_count(), figures=known)


def has_driver() -> bool:
    """Return whether a GPU driver is installed. If not, importing torch, which takes a second, is unnecessary."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError:
        return AMD.exists()
    return True


def figures_of(name: str, memory: float | None = None) -> GpuFigures | None:
    """Return the figures of a GPU by its name, as a user or the driver spells it, such as ``NVIDIA A100-SXM4-40GB``.

    Args:
        name: The name of the GPU, in upper or lower case.
        memory: The GB that choose between variants of one GPU, if the name does not. None: the first variant.

    Returns:
        None if the table does not have the GPU, or if the name is that of a slice of a GPU (MIG).
    """
    words = _words(name)
    matching = [one for one in GPUS if _words(one.model) <= words]
    longest = max((len(_words(one.model)) for one in matching), default=0)
    found = [one for one in matching if len(_words(one.model)) == longest]
    if not found or "mig" in words or words & _VARIANTS - _words(found[0].model):
        return None
    size = next(
        (float(word) for word in words if word.isdigit() and word in {str(one.memory) for one in found}), memory
    )
    return found[0] if size is None else min(found, key=lambda one: abs(one.memory - size))


def gpus_of(memory: float) -> tuple[GpuFigures, ...]:
    """Return the GPUs with approximately ``memory`` GB."""
    return tuple(one for one in GPUS if abs(one.memory - memory) <= _NEAR * memory)


def _words(name: str) -> frozenset[str]:
    """Return the words of a name: ``NVIDIA GeForce RTX 4060Ti`` and ``rtx 4060 ti`` have the same words."""
    apart = re.sub(r"(?<=\d)(?=ti\b|gb\b|super\b)", " ", name.lower())
    return frozenset(re.findall(r"[a-z0-9]+", apart)) - _FILLER
