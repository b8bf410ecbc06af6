"""The result of an evaluation, as ``stages/evaluate-NAME/done.json`` and results.json store it."""

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.images import StoreReport
from toolkit.runfolder import TRAINING_STAGES
from toolkit.scoring.statistics import Comparison, EpisodeMetrics, Estimate, ProbabilityMetrics, Summary

EVALUATE = "evaluate-"
"""Prefix of the stage of an evaluation."""

BEFORE = "before"
"""Name of the evaluation before training."""

BASELINE = "baseline"
"""Key of the majority baseline in ``ScoreResult.differences``."""

LABELS: Mapping[str, str] = {BEFORE: "before", "sft": "after SFT", "dpo": "after DPO", "grpo": "after GRPO"}
"""Evaluations of `toolkit run` in order -> their label in tables. Other evaluations are labelled by name."""

RESERVED_EVALUATION_NAMES = (BEFORE, *TRAINING_STAGES, BASELINE)
"""Names that only the evaluations of `toolkit run` and the baseline have."""


def evaluation_stage(name: str) -> str:
    """Return the stage of an evaluation.

    >>> evaluation_stage("sft")
    'evaluate-sft'
    """
    return f"{EVALUATE}{name}"


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference: this evaluation minus another one or a baseline, on the common samples.

    Attributes:
        difference: mean difference with its interval.
        before: mean of the other on the common samples.
        after: mean of this evaluation on the common samples.
        better: number of samples with a higher score in this evaluation.
        worse: number of samples with a lower score in this evaluation.
        p_value: p-value of McNemar's exact test if all scores are 0 or 1, otherwise None.
        clear: whether the interval excludes 0 and the test, if there is one, agrees.
        only_before: number of samples that only the other has.
        only_after: number of samples that only this evaluation has.
    """

    difference: Estimate
    before: float | None
    after: float | None
    better: int
    worse: int
    p_value: float | None
    clear: bool
    only_before: int
    only_after: int

    @classmethod
    def of(cls, found: Comparison) -> "Difference":
        """Return the difference of a comparison."""
        paired = found.paired
        return cls(
            difference=paired.difference,
            before=paired.before,
            after=paired.after,
            better=paired.better,
            worse=paired.worse,
            p_value=paired.p_value,
            clear=paired.clear,
            only_before=found.only_before,
            only_after=found.only_after,
        )


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One row of a table of results.

    Attributes:
        label: the label of the row.
        estimate: the score with n and interval.
        to_previous: paired difference to the row above. None: there is nothing to compare with.
        to_baseline: paired difference to the majority baseline. None: likewise.
    """

    label: str
    estimate: Estimate
    to_previous: Difference | None = None
    to_baseline: Difference | None = None


@dataclass(frozen=True, slots=True)
class BaselineResult:
    """A further baseline of a task, and its difference to the majority baseline."""

    value: Estimate
    differences: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """One score of an evaluation.

    Attributes:
        value: the score.
        baseline: the score of the majority baseline on the same samples.
        differences: ``BASELINE``, the label of another baseline, or the name of an earlier evaluation -> this
            evaluation minus the other.
        baselines: label -> further baseline of the task.
    """

    value: Estimate
    baseline: Estimate
    differences: Mapping[str, Difference]
    baselines: Mapping[str, BaselineResult]


@dataclass(frozen=True, slots=True)
class SetResult:
    """One metric of the whole set (``Task.set_metrics``).

    Attributes:
        value: the metric. Its n is the number of answers that it applies to.
        baseline: the metric of the majority baseline on the same samples.
        differences: ``BASELINE`` or the name of an earlier evaluation -> this evaluation minus the other, on the common
            samples.
    """

    value: Estimate
    baseline: Estimate
    differences: Mapping[str, Estimate]

    @property
    def to_previous(self) -> Estimate | None:
        """Return the difference to the latest earlier evaluation. None: there is none."""
        names = [name for name in self.differences if name != BASELINE]
        return self.differences[names[-1]] if names else None


@dataclass(frozen=True, slots=True)
class ProbabilityResult:
    """The class probabilities of an evaluation.

    Attributes:
        metrics: their metrics.
        differences: earlier evaluation -> mean over classes -> this evaluation minus the other, on the common samples.
    """

    metrics: ProbabilityMetrics
    differences: Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True, slots=True)
class ModeResult:
    """The result of one agent-memory mode.

    Attributes:
        name: its label in tables.
        metrics: metric -> estimate. See ``AgentMemoryResult.metrics``.
        episodes: metrics of whole episodes.
        by: column -> value -> the primary score.
        skipped: reason -> number of skipped prompts, which count as wrong.
        summary: all metrics. None for the mode "reference", whose summary is that of the evaluation.
    """

    name: str
    metrics: Mapping[str, Estimate]
    episodes: EpisodeMetrics
    by: Mapping[str, Mapping[str, Estimate]]
    skipped: Mapping[str, int]
    summary: Summary | None


@dataclass(frozen=True, slots=True)
class AgentMemoryResult:
    """The comparison of agent-memory modes.

    Attributes:
        metrics: the primary score, whole episodes, and the fraction of an episode before its first failure.
        modes: mode -> its result.
        differences: mode -> other mode -> metric -> the first minus the second.
        after_missing_step: number of samples after a missing step, which no rollout reaches.
    """

    metrics: tuple[str, ...]
    modes: Mapping[str, ModeResult]
    differences: Mapping[str, Mapping[str, Mapping[str, Difference]]]
    after_missing_step: int


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The result of an evaluation.

    Attributes:
        split: the evaluated split.
        score: the name of the task's primary score, with the agent-memory mode if there are several.
        primary: the primary score.
        also: other scores, agent-memory modes and whole episodes that get a table.
        set_metrics: metric of the whole set -> its result. Empty if the task has none.
        probabilities: metrics of class probabilities. None: the task has no classes, or they were not computed.
        summary: all metrics of the mode "reference".
        images: what happened to the images.
        predictions: the JSONL file of predictions, relative to the run folder.
        agent_memory: the comparison of agent-memory modes. None: the task has no agent memory.
        metrics_code: the digest of the code of the custom metrics. None: there are none.
    """

    split: str
    score: str
    primary: ScoreResult
    also: Mapping[str, ScoreResult]
    set_metrics: Mapping[str, SetResult]
    probabilities: ProbabilityResult | None
    summary: Summary
    images: StoreReport
    predictions: str
    agent_memory: AgentMemoryResult | None
    metrics_code: str | None = None

    @property
    def scores(self) -> Mapping[str, ScoreResult]:
        """Return score -> its result, with the primary score first."""
        return {self.score: self.primary, **self.also}
