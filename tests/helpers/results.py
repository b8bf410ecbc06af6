"""Results of stages that were not run, for tests of what reads them."""

from collections.abc import Mapping

from toolkit.evaluation.results import Difference, EvaluationResult, ScoreResult
from toolkit.images import StoreReport
from toolkit.models.lengths import TokenLengths
from toolkit.scoring.statistics import ConfusionMatrix, Estimate, Metrics, Summary
from toolkit.training.results import GpuMemory, GrpoResult, SftResult, StepSeconds, TrainingFigures


def estimate(value: float, half: float = 0.1, n: int = 100) -> Estimate:
    return Estimate(value, n, value - half, value + half, "bootstrap by group", n)


def difference(value: float, half: float = 0.1, n: int = 100) -> Difference:
    found = estimate(value, half, n)
    return Difference(found, 0.0, value, 0, 0, None, clear=False, only_before=0, only_after=0)


def evaluation_result(name: str, value: float, baseline: float, others: Mapping[str, float]) -> EvaluationResult:
    """The evaluation ``name``, with its differences to ``others`` and no other figures."""
    found = estimate(value)
    metrics = Metrics(found.n, found.groups, {"accuracy": found}, None, None, estimate(0), estimate(0))
    differences = {other: difference(value - of_other) for other, of_other in others.items()}
    return EvaluationResult(
        split="test",
        score="accuracy",
        primary=ScoreResult(found, estimate(baseline), differences, {}),
        also={},
        set_metrics={},
        probabilities=None,
        summary=Summary(metrics, {}, (), (), ConfusionMatrix((), {})),
        images=StoreReport(),
        predictions=f"stages/evaluate-{name}/predictions.jsonl",
        agent_memory=None,
    )


FIGURES = TrainingFigures(
    steps=1,
    seconds=2.5,
    seconds_per_step=StepSeconds((1.0, 2.0), None, 2.5),
    skipped_steps=0,
    resumed_from=None,
    gpu_memory=GpuMemory(None, None, 0, 2, 4, None, (), None),
)
LENGTHS = TokenLengths(rows=8, counted=8, median=50, p95=60, max=64, images=16, limit=256)


def sft_result() -> SftResult:
    return SftResult(FIGURES, LENGTHS, "hf", "adamw_torch", 8, StoreReport())


def grpo_result() -> GrpoResult:
    return GrpoResult(FIGURES, LENGTHS, "hf", "adamw_torch", 8, StoreReport(), 0, None, "beta = 0")
