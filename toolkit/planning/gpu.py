"""The GPU that a plan is for: this machine's, or one that is described."""

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

from toolkit.planning.duration.gpus import GpuFigures, figures_of, gpus_of

GIB = 2**30
USABLE = 0.92
"""Share of a card's nominal memory that a program can have: a T4 of 16 GB offers 14.7 GiB."""
AMD = Path("/dev/kfd")
"""The device file of AMD's driver, whose cards torch shows as CUDA devices too."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device. ``memory`` is what a program can have of it, in bytes."""

    name: str
    memory: int
    bf16: bool
    """It computes in bfloat16: compute capability 8.0 and above."""
    count: int = 1
    """Devices of the machine."""
    here: bool = True
    """In this machine, not described."""
    figures: tuple[GpuFigures, ...] = ()
    """Data-sheet figures of the GPU, or of all GPUs with the described size. Empty: not known."""

    def to_json(self) -> dict[str, object]:
        """Return name, memory in GB, and where the GPU is."""
        facts = {"name": self.name, "memory_gb": round(self.memory / 1e9, 2), "bf16": self.bf16}
        return {**facts, "count": self.count, "here": self.here}


def described_gpu(gib: float) -> Gpu:
    """A card of so many GiB that is not here; it is taken to compute in bfloat16."""
    return Gpu(f"a card of {gib:g} GB", usable_bytes(gib), bf16=True, here=False, figures=gpus_of(gib))


def named_gpu(name: str) -> Gpu | None:
    """Return a GPU that is not in this machine, by its name. None: the table of data-sheet figures lacks it."""
    figures = figures_of(name)
    if figures is None:
        return None
    return Gpu(figures.name, usable_bytes(figures.memory), figures.bf16, here=False, figures=(figures,))


def usable_bytes(gib: float) -> int:
    """What a program can have of a card of so many nominal GiB."""
    return int(USABLE * gib * GIB)


def find_gpu() -> Gpu | None:
    """The current CUDA device, which is the one that a run uses; None: there is none."""
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
    """Whether a GPU's driver is installed: without one torch, which takes a second to import, need not be asked."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError:
        return AMD.exists()
    return True
