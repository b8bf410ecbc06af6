"""Speed of a GPU for passes of a model, as a range.

A pass takes the longer of two times. The GPU time is FLOPs at the rate of matrix products, plus bytes at the rate of
GPU memory. The host time is the number of kernel launches times the time for each. Passes are consecutive, so their
times add up.

Each rate has a slow and a fast end, a factor of 2 apart, around a middle. Two published runs fit the middle: Unsloth's
notebook for SFT of Gemma 3 4B on a T4 (20.4 s per step) fits the rate of float32 products, and the MedGemma notebook
for SFT on an A100 40 GB (18.8 s per step) fits the rate of tensor cores. Rates of GPU memory and host are assumptions.
"""

from dataclasses import dataclass

from toolkit.models.families import family_of
from toolkit.planning.gpu import GpuFigures
from toolkit.planning.passes import Cost
from toolkit.planning.stages import Setting

FLOAT32, TENSOR, BANDWIDTH = 0.9, 0.36, 0.75
"""Fraction of the data sheet's rate that is reached: float32 products, tensor cores, GPU memory. The first two are
fits, so they also absorb savings of Unsloth's fused kernels and work that the formulas leave out."""

LAUNCH = 15e-6
"""Host seconds for each kernel launch."""

PIXEL = 25e-9
"""CPU seconds for each pixel that the processor prepares."""

RANGE_FACTOR = 2**0.5
"""Factor between the middle and each end of a rate."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Rates of a machine: FLOP/s, bytes/s, seconds for each kernel launch and for each pixel."""

    flops: float
    moved: float
    launch: float
    pixel: float

    def seconds(self, cost: Cost) -> float:
        """Return the duration of one kind of pass."""
        return max(cost.flops / self.flops + cost.moved / self.moved, cost.launches * self.launch)

    def faster(self, times: float) -> "Speed":
        """Return a machine that is ``times`` times as fast in every rate."""
        return Speed(self.flops * times, self.moved * times, self.launch / times, self.pixel / times)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Type of matrix products on one GPU."""

    name: str
    """bfloat16, float16 or float32."""

    @property
    def value(self) -> int:
        """Return the bytes of a number."""
        return 4 if self.name == "float32" else 2


def speeds(gpu: GpuFigures, arithmetic: Arithmetic) -> tuple[Speed, Speed]:
    """Return the fast and the slow end for a GPU."""
    peak = FLOAT32 * gpu.float32 if arithmetic.name == "float32" else TENSOR * gpu.tensor
    middle = Speed(1e12 * peak, 1e9 * BANDWIDTH * gpu.bandwidth, LAUNCH, PIXEL)
    return middle.faster(RANGE_FACTOR), middle.faster(1 / RANGE_FACTOR)


def arithmetic_of(gpu: GpuFigures, setting: Setting, model_type: str) -> Arithmetic:
    """Return the type of matrix products.

    Without bfloat16, the hf backend computes in float32. Unsloth computes in float16, but in float32 for models whose
    activations overflow in float16.
    """
    if setting.precision == "32bit":
        return Arithmetic("float32")
    if gpu.bf16:
        return Arithmetic("bfloat16")
    halved = setting.backend == "unsloth" and not family_of(model_type).overflows
    return Arithmetic("float16" if halved else "float32")
