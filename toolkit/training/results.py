"""The results of SFT, DPO and GRPO, as ``stages/<stage>/done.json`` and results.json store them."""

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.images import StoreReport
from toolkit.models.lengths import TokenLengths


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """Seconds per optimizer step. None: unknown.

    Attributes:
        planned: The lowest and highest estimate of the plan for this machine's GPU.
        preflight: The seconds of the preflight step, an upper bound.
        measured: The median of the last session.
    """

    planned: tuple[float, float] | None
    preflight: float | None
    measured: float | None


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """The preflight step: its seconds, and the peaks of GPU memory in bytes. None: no GPU."""

    seconds: float
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """One out-of-memory error.

    Attributes:
        step: The optimizer step. None: a rollout, which is repeated with fewer completions per call.
        during: The activity that ran out of memory.
        micro_batch: The micro-batch after it.
        accumulation: The passes per optimizer step after it.
        completions_per_generate: The completions per ``generate`` call after it. None: SFT, DPO, or vLLM.
        continued_from: The checkpoint or rollout from which training continued.
    """

    step: int | None
    during: str
    micro_batch: int
    accumulation: int
    completions_per_generate: int | None
    continued_from: str


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """GPU memory of a stage, and its recovery from out-of-memory errors.

    Attributes:
        peak_allocated_bytes: The peak of the last session. None: no GPU, or no step was left to train.
        peak_reserved_bytes: The peak of the memory that torch reserved, likewise.
        out_of_memory: The number of out-of-memory errors in all sessions.
        micro_batch: The final micro-batch.
        accumulation: The final passes per optimizer step.
        completions_per_generate: The final completions per ``generate`` call. None: SFT, DPO, or vLLM.
        recoveries: The out-of-memory errors.
        preflight: The preflight step. None: there was none.
    """

    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    out_of_memory: int
    micro_batch: int
    accumulation: int
    completions_per_generate: int | None
    recoveries: tuple[OutOfMemory, ...]
    preflight: PreflightResult | None


@dataclass(frozen=True, slots=True)
class ValidationFigure:
    """A mean over ``n`` validation rows with its 95 % interval by group, as in an evaluation.

    The loss is a mean over the supervised tokens of these rows. ``low`` and ``high`` are None if the rows are of one
    group, or if the value is not finite.
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """One validation.

    Attributes:
        step: The optimizer step that it followed.
        figures: Maps ``loss`` (SFT), ``reward`` (GRPO), the primary score of the task, and the fractions of
            ``unreadable`` and ``truncated`` completions to figures. A score that applies to no row is missing.
    """

    step: int
    figures: Mapping[str, ValidationFigure]


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """The validations of a stage, and what they decided.

    Attributes:
        rows: The number of validation rows.
        metric: The figure that decided.
        lower_is_better: Whether a lower value of it is better.
        best_step: The optimizer step with the best value.
        best_value: This value.
        weights_step: The optimizer step whose weights are the stage's.
        stopped_early: Why the training stopped before its last step, or None.
        validations: All validations, in order.
    """

    rows: int
    metric: str
    lower_is_better: bool
    best_step: int
    best_value: float
    weights_step: int
    stopped_early: str | None
    validations: tuple[Validation, ...]


@dataclass(frozen=True, slots=True)
class TrainingFigures:
    """What SFT, DPO and GRPO have in common.

    Attributes:
        steps: The optimizer steps that the stage made.
        seconds: The duration of the last session.
        seconds_per_step: The planned and measured duration of an optimizer step.
        skipped_steps: The number of optimizer steps that the gradient scaler skipped.
        resumed_from: The checkpoint that the last session started from, or None.
        gpu_memory: The GPU memory and out-of-memory errors.
        validation: The validations. None: the recipe has no [validation].
    """

    steps: int
    seconds: float
    seconds_per_step: StepSeconds
    skipped_steps: int
    resumed_from: str | None
    gpu_memory: GpuMemory
    validation: ValidationResult | None = None


@dataclass(frozen=True, slots=True)
class SftResult:
    """The result of SFT.

    Attributes:
        training: The steps, time and GPU memory.
        lengths: The tokens of the training rows.
        backend: The backend, "hf" or "unsloth".
        optimizer: The optimizer that was used on this machine.
        rows: The number of training rows.
        images: The counts of read, replaced and cached images.
    """

    training: TrainingFigures
    lengths: TokenLengths
    backend: str
    optimizer: str
    rows: int
    images: StoreReport


@dataclass(frozen=True, slots=True)
class PreferenceFigures:
    """The pairs of one logged optimizer step, before its update.

    Attributes:
        step: The optimizer step.
        loss: The mean loss. At the reference it is ln 2, about 0.693.
        accuracy: The fraction of the pairs whose chosen answer gained more log-probability than the rejected one.
        margin: ``beta`` times the mean of the difference of these gains, in nats.
    """

    step: int
    loss: float
    accuracy: float
    margin: float


@dataclass(frozen=True, slots=True)
class DpoResult:
    """The result of DPO.

    Attributes:
        training: The steps, time and GPU memory.
        lengths: The tokens of the training rows with the chosen answer.
        rejected_lengths: The tokens of the training rows with the rejected answer.
        backend: The backend, "hf" or "unsloth".
        optimizer: The optimizer that was used on this machine.
        rows: The number of training rows, each with one pair.
        images: The counts of read, replaced and cached images.
        reference: The weights that the stage started from, which are the reference.
        first: The figures of the first logged step. None: no step was logged.
        last: The figures of the last logged step, likewise.
    """

    training: TrainingFigures
    lengths: TokenLengths
    rejected_lengths: TokenLengths
    backend: str
    optimizer: str
    rows: int
    images: StoreReport
    reference: str
    first: PreferenceFigures | None
    last: PreferenceFigures | None


@dataclass(frozen=True, slots=True)
class RewardSummary:
    """One reward over the prompts of a step. Values are None if the reward applied to no completion."""

    n: int
    """Number of completions that the reward applied to."""
    mean: float | None
    std: float | None
    """Mean over the groups of the standard deviation within a group (divisor G - 1, as TRL's ``reward_std``)."""
    zero_variance: float | None
    """Fraction of the groups whose completions all have the same reward. Their advantages and gradients are 0."""


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """The rewards of the completions of one step.

    Attributes:
        total: The weighted sum of the rewards.
        components: Maps each reward to its summary.
        unreadable: Fraction of the completions from which no answer could be parsed.
        truncated: Fraction of the completions that reached the token limit.
        problems: Maps the reason why no answer could be parsed to the number of completions, the most frequent first.
    """

    total: RewardSummary
    components: Mapping[str, RewardSummary]
    unreadable: float
    truncated: float
    problems: Mapping[str, int]

    def to_log(self) -> dict[str, float]:
        """Return the metrics of the log, such as ``reward/letter/mean``. Rewards that never applied are omitted."""
        log = {"reward/unreadable": self.unreadable, "reward/truncated": self.truncated}
        for name, summary in {"total": self.total, **self.components}.items():
            parts = {"mean": summary.mean, "std": summary.std, "zero_variance": summary.zero_variance}
            log |= {f"reward/{name}/{part}": value for part, value in parts.items() if value is not None}
        return log


@dataclass(frozen=True, slots=True)
class ProbeResult(GroupStatistics):
    """The rewards of completions that were sampled before the first step.

    Attributes:
        failure: The reason why GRPO can learn nothing from these rewards, or None.
    """

    failure: str | None


@dataclass(frozen=True, slots=True)
class Resampling:
    """What was done about zero-variance groups in the logged steps of the stage.

    Attributes:
        rollouts: The number of extra rollouts.
        groups: The number of zero-variance groups that were replaced.
    """

    rollouts: int
    groups: int


@dataclass(frozen=True, slots=True)
class GrpoResult:
    """The result of GRPO.

    Attributes:
        training: The steps, time and GPU memory.
        lengths: The tokens of the training rows.
        backend: The backend, "hf" or "unsloth".
        optimizer: The optimizer that was used on this machine.
        rows: The number of training rows.
        images: The counts of read, replaced and cached images.
        rows_left_out_each_epoch: The number of rows that do not fill an optimizer step.
        probe: The probe before the first step. None: grpo.probe_prompts is 0.
        kl_reference: The model that the KL term is measured against, in words.
        resampling: The extra rollouts of ``grpo.resample``.
    """

    training: TrainingFigures
    lengths: TokenLengths
    backend: str
    optimizer: str
    rows: int
    images: StoreReport
    rows_left_out_each_epoch: int
    probe: ProbeResult | None
    kl_reference: str
    resampling: Resampling = Resampling(0, 0)
