"""The duration of a recipe's stages on one GPU: seconds of an optimizer step or an evaluation, hours of the stage."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from toolkit.models.chat_template import Length
from toolkit.planning.architecture import Architecture
from toolkit.planning.duration.estimate import (
    BANDWIDTH,
    FLOAT32,
    LAUNCH,
    SPREAD,
    TENSOR,
    Speed,
    arithmetic_of,
    evaluation,
    grpo_step,
    sft_step,
    speeds,
)
from toolkit.planning.duration.gpus import GpuFigures
from toolkit.planning.duration.load import Passes
from toolkit.planning.memory import Setting
from toolkit.planning.tokens import Tokens, row_size
from toolkit.planning.work import Work

SHORTEST = 2 / 3
"""Tokens of the longest completion of a batch at the fast end, relative to their limit. All of the limit at the slow
end. With ``SPREAD`` the upper end of a range is at most 3 times the lower end."""
ASSUMPTIONS = (
    f"assumed: {100 * FLOAT32:.0f} % of the data sheet's float32 rate, {100 * TENSOR:.0f} % of its tensor rate, "
    f"{100 * BANDWIDTH:.0f} % of its memory bandwidth, {1e6 * LAUNCH:.0f} microseconds a kernel launch, each within a "
    f"factor of {SPREAD:.1f}",
    "the longest completion of a batch has from two thirds of max_completion_tokens to all of it. If completions are "
    "shorter, the stage takes less",
    "rows have the mean length of those that were counted",
    "not included: download, loading, the first compilation, checkpoints, export",
)
"""What the ranges rest on, for whoever reads them."""


@dataclass(frozen=True, slots=True)
class Range:
    """A duration in seconds, from its lower to its upper end."""

    low: float
    high: float

    @property
    def seconds(self) -> tuple[float, float]:
        """Both ends, to three digits."""
        return _short(self.low), _short(self.high)

    @property
    def hours(self) -> tuple[float, float]:
        """Both ends in hours, to three digits."""
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
        """Of all steps."""
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
