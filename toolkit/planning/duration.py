"""Duration of stages on a GPU: seconds of an optimizer step or an evaluation, as a range.

A pass takes the longer of two times. The GPU time is FLOPs at the rate of matrix products, plus bytes at the rate of
GPU memory. The host time is the number of kernel launches times the time for each. Passes are consecutive, so their
times add up.

Each rate has a slow and a fast end, a factor of 2 apart, around a middle. Two published runs fit the middle: Unsloth's
notebook for SFT of Gemma 3 4B on a T4 (20.4 s per step) fits the rate of float32 products, and the MedGemma notebook
for SFT on an A100 40 GB (18.8 s per step) fits the rate of tensor cores. Rates of GPU memory and host are assumptions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from toolkit.models.chat_template import Length
from toolkit.planning.architecture import Architecture
from toolkit.planning.gpu import GpuFigures
from toolkit.planning.passes import Load, Passes
from toolkit.planning.stages import OVERFLOWING, Setting, Work
from toolkit.planning.tokens import Tokens, row_size

FLOAT32, TENSOR, BANDWIDTH = 0.9, 0.36, 0.75
"""Fraction of the data sheet's rate that is reached: float32 products, tensor cores, GPU memory. The first two are
fits, so they also absorb savings of Unsloth's fused kernels and work that the formulas leave out."""
LAUNCH = 15e-6
"""Host seconds for each kernel launch."""
PIXEL = 25e-9
"""CPU seconds for each pixel that the processor prepares."""
SPREAD = 2**0.5
"""Factor between the middle and each end of a rate."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Rates of a machine: FLOP/s, bytes/s, seconds for each kernel launch and for each pixel."""

    flops: float
    moved: float
    launch: float
    pixel: float

    def seconds(self, load: Load) -> float:
        """Return the duration of one kind of pass."""
        return max(load.flops / self.flops + load.moved / self.moved, load.launches * self.launch)

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
    return middle.faster(SPREAD), middle.faster(1 / SPREAD)


def arithmetic_of(gpu: GpuFigures, setting: Setting, model_type: str) -> Arithmetic:
    """Return the type of matrix products.

    Without bfloat16, the hf backend computes in float32. Unsloth computes in float16, but in float32 for models whose
    activations overflow in float16.
    """
    if setting.precision == "32bit":
        return Arithmetic("float32")
    if gpu.bf16:
        return Arithmetic("bfloat16")
    halved = setting.backend == "unsloth" and not model_type.startswith(OVERFLOWING)
    return Arithmetic("float16" if halved else "float32")


def sft_step(passes: Passes, speed: Speed, rows: int) -> float:
    """Return the seconds of an optimizer step of ``rows`` rows in micro-batches of ``setting.rows``."""
    at_once = min(passes.setting.rows, rows)
    seconds = speed.seconds(passes.training(at_once, passes.setting.row.answer))
    return math.ceil(rows / at_once) * seconds + rows * image_seconds(passes, speed)


def grpo_step(passes: Passes, speed: Speed, answer: float) -> float:
    """Return the seconds of an optimizer step: a rollout of all completions at once, and an update in micro-batches.

    Args:
        passes: of the stage.
        speed: of the machine.
        answer: tokens of the longest completion, to which the others are padded.
    """
    setting = passes.setting
    completions = setting.concurrent
    read, write = passes.rollout(completions, answer)
    update = speed.seconds(passes.training(setting.rows, answer))
    if setting.reference != "none":
        update += speed.seconds(passes.reading(setting.rows, answer))
    rollout = speed.seconds(read) + speed.seconds(write)
    return rollout + completions / setting.rows * update + completions * image_seconds(passes, speed)


def evaluation(passes: Passes, speed: Speed, answers: int, answer: float) -> float:
    """Return the seconds of generating ``answers`` completions in batches of ``setting.concurrent``."""
    read, write = passes.rollout(min(passes.setting.concurrent, answers), answer)
    batches = math.ceil(answers / passes.setting.concurrent)
    return batches * (speed.seconds(read) + speed.seconds(write)) + answers * image_seconds(passes, speed)


def image_seconds(passes: Passes, speed: Speed) -> float:
    """Return the CPU seconds for the images of one row."""
    tower = passes.model.vision
    return 0.0 if tower is None else passes.setting.row.patches * tower.patch**2 * speed.pixel


SHORTEST = 2 / 3
"""Tokens of the longest completion of a batch at the fast end, relative to their limit. The slow end uses the limit.
With ``SPREAD`` the upper end of a range is at most 3 times the lower end."""
ASSUMPTIONS = (
    f"assumed: {100 * FLOAT32:.0f} % of the data sheet's float32 rate, {100 * TENSOR:.0f} % of its tensor rate, "
    f"{100 * BANDWIDTH:.0f} % of its memory bandwidth, {1e6 * LAUNCH:.0f} microseconds a kernel launch, each within a "
    f"factor of {SPREAD:.1f}",
    "the longest completion of a batch has from two thirds of max_completion_tokens to all of it. If completions are "
    "shorter, the stage is faster",
    "rows have the mean length of those that were counted",
    "not included: download, loading, the first compilation, checkpoints, export",
)
"""Assumptions of the ranges, for readers of a plan."""


@dataclass(frozen=True, slots=True)
class Range:
    """A duration in seconds, from its lower to its upper end."""

    low: float
    high: float

    @property
    def seconds(self) -> tuple[float, float]:
        """Return both ends in seconds, to three digits."""
        return _short(self.low), _short(self.high)

    @property
    def hours(self) -> tuple[float, float]:
        """Return both ends in hours, to three digits."""
        return _short(self.low / 3600), _short(self.high / 3600)

    def __mul__(self, times: float) -> "Range":
        return Range(self.low * times, self.high * times)


@dataclass(frozen=True, slots=True)
class StageTime:
    """Estimated duration of one stage.

    Attributes:
        step: of an optimizer step, or of one evaluation.
        steps: optimizer steps of the stage, or evaluations of the run.
    """

    step: Range
    steps: int

    @property
    def total(self) -> Range:
        """Return the duration of all steps."""
        return self.step * self.steps

    def to_json(self) -> dict[str, object]:
        """Return the entry of plan.json."""
        return {"seconds_per_step": list(self.step.seconds), "steps": self.steps, "hours": list(self.total.hours)}


def mean_setting(setting: Setting, model: Architecture, tokens: Tokens) -> Setting:
    """Return the setting with a mean row of ``tokens`` in place of the longest."""
    parts = (
        round(float(np.mean([asdict(one)[part] for one in tokens.lengths]))) for part in ("text", "images", "answer")
    )
    return replace(setting, row=row_size(Length(*parts), model.vision, tokens.longest_sizes))


def stage_time(model: Architecture, setting: Setting, work: Work, gpu: GpuFigures) -> StageTime:
    """Return the duration of a stage on a GPU.

    Args:
        model: its architecture.
        setting: of the stage, with a mean row.
        work: its steps, rows and answers.
        gpu: figures of the GPU.
    """
    arithmetic = arithmetic_of(gpu, setting, model.model_type)
    passes = Passes(model, setting, arithmetic.value)
    fast, slow = speeds(gpu, arithmetic)
    step = Range(_step(passes, fast, work, SHORTEST), _step(passes, slow, work, 1.0))
    return StageTime(step, work.evaluations if setting.stage == "evaluate" else work.steps)


def stage_times(
    model: Architecture,
    settings: Mapping[str, Setting],
    work: Mapping[str, Work],
    gpus: Sequence[GpuFigures],
) -> dict[str, dict[str, StageTime]]:
    """Return GPU -> stage -> duration, for settings that have mean rows."""
    return {
        gpu.name: {
            name: stage_time(model, setting, work[name], gpu) for name, setting in settings.items() if name in work
        }
        for gpu in gpus
    }


def _step(passes: Passes, speed: Speed, work: Work, part: float) -> float:
    stage, answer = passes.setting.stage, part * passes.setting.answer_tokens
    if stage == "sft":
        return sft_step(passes, speed, work.samples)
    if stage == "grpo":
        return grpo_step(passes, speed, answer)
    return evaluation(passes, speed, work.answers // max(1, work.evaluations), answer)


def _short(value: float) -> float:
    return float(f"{value:.3g}")
