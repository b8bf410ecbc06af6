"""Duration of stages on a GPU: seconds of an optimizer step or an evaluation, as a range.

A stage is a sequence of passes (``toolkit.planning.passes``), whose times on the GPU (``toolkit.planning.speed``) add
up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from toolkit.models.image_tokens import Length
from toolkit.planning.architecture import Architecture
from toolkit.planning.gpu import GpuFigures
from toolkit.planning.passes import Passes
from toolkit.planning.speed import BANDWIDTH, FLOAT32, LAUNCH, RANGE_FACTOR, TENSOR, Speed, arithmetic_of, speeds
from toolkit.planning.stages import Setting, Stage, Work
from toolkit.planning.tokens import Tokens, row_size

SHORTEST = 2 / 3
"""Tokens of the longest completion of a batch at the fast end, relative to their limit. The slow end uses the limit.
With ``RANGE_FACTOR`` the upper end of a range is at most 3 times the lower end. Extra rollouts of GRPO, which only the
upper end has, come on top."""

ASSUMPTIONS = (
    f"assumed: {100 * FLOAT32:.0f} % of the data sheet's float32 rate, {100 * TENSOR:.0f} % of its tensor rate, "
    f"{100 * BANDWIDTH:.0f} % of its memory bandwidth, {1e6 * LAUNCH:.0f} microseconds a kernel launch, each within a "
    f"factor of {RANGE_FACTOR:.1f}",
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

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def __mul__(self, times: float) -> "Range":
        return Range(self.low * times, self.high * times)


@dataclass(frozen=True, slots=True)
class StageTime:
    """Estimated duration of one stage.

    Attributes:
        step: The seconds of an optimizer step, or of one evaluation.
        steps: The number of optimizer steps of the stage, or of evaluations of the run.
        validation: The seconds of one validation within the stage.
        validations: The number of validations.
    """

    step: Range
    steps: int
    validation: Range = Range(0.0, 0.0)
    validations: int = 0

    @property
    def total(self) -> Range:
        """Return the duration of all steps and validations."""
        return self.step * self.steps + self.validation * self.validations

    def to_json(self) -> dict[str, object]:
        """Return the entry of plan.json."""
        found: dict[str, object] = {"seconds_per_step": list(self.step.seconds), "steps": self.steps}
        if self.validations:
            found |= {"seconds_per_validation": list(self.validation.seconds), "validations": self.validations}
        return {**found, "hours": list(self.total.hours)}


def mean_setting(setting: Setting, model: Architecture, tokens: Tokens) -> Setting:
    """Return the setting with a mean row of ``tokens`` in place of the longest."""
    lengths = [asdict(one) for one in tokens.lengths]
    parts = (round(float(np.mean([one[part] for one in lengths]))) for part in ("text", "images", "answer", "earlier"))
    return replace(setting, row=row_size(Length(*parts), model.vision, tokens.longest_sizes))


def stage_time(model: Architecture, setting: Setting, work: Work, gpu: GpuFigures) -> StageTime:
    """Return the duration of a stage on a GPU.

    Args:
        model: The model's architecture.
        setting: The memory setting of the stage, with a mean row.
        work: The steps, rows and answers of the stage.
        gpu: The figures of the GPU.
    """
    arithmetic = arithmetic_of(gpu, setting, model.model_type)
    passes = Passes(model, setting, arithmetic.value)
    fast, slow = speeds(gpu, arithmetic)
    fewest = replace(work, extra_rollouts=0)
    step = Range(_step(passes, fast, fewest, SHORTEST), _step(passes, slow, work, 1.0))
    if setting.stage == "evaluate":
        return StageTime(step, work.evaluations)
    if not (work.validations and setting.validated):
        return StageTime(step, work.steps)
    validation = Range(validate(passes, fast, work.validated, SHORTEST), validate(passes, slow, work.validated, 1.0))
    return StageTime(step, work.steps, validation, work.validations)


def stage_times(
    model: Architecture,
    settings: Mapping[Stage, Setting],
    work: Mapping[Stage, Work],
    gpus: Sequence[GpuFigures],
) -> dict[str, dict[Stage, StageTime]]:
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
    if stage == "dpo":
        return dpo_step(passes, speed, work.samples)
    if stage == "grpo":
        return grpo_step(passes, speed, answer, work.extra_rollouts)
    return evaluation(passes, speed, work.answers // max(1, work.evaluations), answer)


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def sft_step(passes: Passes, speed: Speed, rows: int) -> float:
    """Return the seconds of an optimizer step of ``rows`` rows in micro-batches of ``setting.rows``."""
    at_once = min(passes.setting.rows, rows)
    seconds = speed.seconds(passes.training(at_once, passes.setting.row.supervised))
    return math.ceil(rows / at_once) * seconds + rows * image_seconds(passes, speed)


def dpo_step(passes: Passes, speed: Speed, pairs: int) -> float:
    """Return the seconds of an optimizer step of ``pairs`` pairs in micro-batches of ``setting.rows`` rows."""
    at_once = min(passes.setting.rows // 2, pairs)
    seconds = speed.seconds(passes.pairs(at_once, passes.setting.row.answer))
    return math.ceil(pairs / at_once) * seconds + pairs * image_seconds(passes, speed)


def grpo_step(passes: Passes, speed: Speed, answer: float, extra_rollouts: int = 0) -> float:
    """Return the seconds of an optimizer step: a rollout of all completions at once, and an update in micro-batches.

    Args:
        passes: The passes of the stage.
        speed: The speed of the machine.
        answer: The tokens of the longest completion, to which the others are padded.
        extra_rollouts: The number of further rollouts, each of all completions.
    """
    setting = passes.setting
    completions = setting.concurrent
    read, write = passes.rollout(completions, answer)
    rollout = speed.seconds(read) + speed.seconds(write) + completions * image_seconds(passes, speed)
    passes_of_step = completions / (setting.rows * setting.packed)
    if setting.reference != "none":
        rollout += passes_of_step * speed.seconds(passes.reading(setting.rows, answer))
    update = passes_of_step * speed.seconds(passes.training(setting.rows, answer))
    return (1 + extra_rollouts) * rollout + update


def evaluation(passes: Passes, speed: Speed, answers: int, answer: float) -> float:
    """Return the seconds of generating ``answers`` completions in batches of ``setting.concurrent``."""
    read, write = passes.rollout(min(passes.setting.concurrent, answers), answer)
    batches = math.ceil(answers / passes.setting.concurrent)
    return batches * (speed.seconds(read) + speed.seconds(write)) + answers * image_seconds(passes, speed)


def validate(passes: Passes, speed: Speed, rows: int, part: float) -> float:
    """Return the seconds of one validation: greedy completions, and in SFT the loss of each row on its own.

    Args:
        passes: The passes of the stage. Its rows count as mean rows of the validation split.
        speed: The speed of the machine.
        rows: The validation rows.
        part: The tokens of the longest completion, relative to their limit.
    """
    concurrent, tokens = passes.setting.validated or (1, 0)
    generating = replace(passes, setting=replace(passes.setting, concurrent=concurrent))
    found = evaluation(generating, speed, rows, part * tokens)
    if passes.setting.stage == "grpo":
        return found
    return found + rows * (
        speed.seconds(passes.reading(1, passes.setting.row.supervised)) + image_seconds(passes, speed)
    )


def image_seconds(passes: Passes, speed: Speed) -> float:
    """Return the CPU seconds for the images of one row."""
    tower = passes.model.vision
    return 0.0 if tower is None else passes.setting.row.patches * tower.patch**2 * speed.pixel
