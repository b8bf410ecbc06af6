"""The GPU that the process simulates."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """Name, GPU memory in GiB and compute capability; from 8.0 on a GPU computes in bfloat16."""

    name: str
    gibibytes: float
    capability: tuple[int, int]

    @property
    def bfloat16(self) -> bool:
        """Whether it computes in bfloat16; without it Unsloth forces Gemma 3 into float32."""
        return self.capability >= (8, 0)


GPUS: Mapping[str, Gpu] = {
    "T4": Gpu("Tesla T4", 14.56, (7, 5)),
    "L4": Gpu("NVIDIA L4", 22.03, (8, 9)),
}
CHOICE = "UNSLOTH_CPU_GPU"
"""Environment variable with a key of ``GPUS``; the default is L4."""
MEMORY = "UNSLOTH_CPU_GIB"
"""Environment variable with another size of the GPU memory, in GiB."""


def chosen_gpu() -> Gpu:
    """Return the GPU that the environment names."""
    gpu = GPUS[os.environ.get(CHOICE, "L4")]
    return Gpu(gpu.name, float(os.environ.get(MEMORY, gpu.gibibytes)), gpu.capability)
