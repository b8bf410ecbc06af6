"""Verify an export: compare greedy completions and token log-probabilities before and after reloading."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolkit.data.sample import Sample
from toolkit.data.task import Task
from toolkit.evaluation.answers import read_answer
from toolkit.exporting.results import MeanScore, Verification
from toolkit.models import Backend
from toolkit.models.backend import Completion, Policy, Row, Sampling
from toolkit.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Bound:
    """The largest difference that passes verification.

    Attributes:
        fraction: fraction of the completions that may differ, in [0, 1].
        gap: largest difference of a token's log-probability.
    """

    fraction: float
    gap: float


BOUNDS: Mapping[str, Bound] = {
    "32": Bound(0, 0.01),
    "16": Bound(0.25, 0.5),
    "f16": Bound(0.1, 0.5),
    "bf16": Bound(0.125, 1.0),
    "q8_0": Bound(0.125, 1.0),
    "q6_k": Bound(0.2, 2.0),
    "q5_k_m": Bound(0.3, 3.0),
    "q4_k_m": Bound(0.4, 6.0),
}
"""Bits of the weights, or GGUF quantization -> largest difference.

In 32 bits only the order of sums changes. The measured gap was 1e-5, and no completion changed. All other formats
round, and one token that was nearly tied may change a completion. The gaps are at least twice those measured on the
trained tiny model, whose few parameters are more sensitive to rounding than those of a large model. The fractions are
meant for 16 samples. q8_0 changed 16 of 1,000 completions, so 2 of 16 may differ: chance gives 3 or more once in 500
exports. The measurements are in docs/concepts/export_verification.md.
"""


@dataclass(frozen=True, slots=True)
class VerificationSet:
    """Samples that verify an export.

    Attributes:
        recipe: the recipe of the run.
        task: the task of the samples.
        samples: the samples, at most ``export.verify``.
        rows: the prompts of the samples, as a model sees them.
        held_out: False if no held-out samples exist, so that these are training samples.
    """

    recipe: Recipe
    task: Task
    samples: Sequence[Sample]
    rows: Sequence[Row]
    held_out: bool = True

    def verification(self, compared: "Comparison", after: "GreedyCompletions") -> Verification:
        """Return the figures of a comparison for the result. ``after`` are the completions of the reloaded export."""
        return Verification(
            samples=compared.samples,
            differing=len(compared.differing),
            gap=round(compared.gap, 5),
            mean_gap=round(compared.mean_gap, 6),
            score=self.mean_score(after.completions),
            held_out=self.held_out,
        )

    def mean_score(self, completions: Sequence[Completion]) -> MeanScore:
        """Return the mean of the task's primary score, over the completions to which it applies, and their number."""
        task = self.task
        values = [
            task.scores(sample, read_answer(task, sample, completion)).get(task.primary)
            for sample, completion in zip(self.samples, completions, strict=True)
        ]
        scores = [score for score in values if score is not None]
        return MeanScore(task.primary, len(scores), sum(scores) / len(scores) if scores else None)


@dataclass(frozen=True, slots=True)
class GreedyCompletions:
    """Greedy completions of one model.

    Attributes:
        completions: one per sample.
        log_probs: log-probabilities of the tokens of the reference completions, per sample.
    """

    completions: Sequence[Completion]
    log_probs: Sequence[Sequence[float]]

    @property
    def texts(self) -> list[str]:
        """Return the texts of the completions."""
        return [one.text for one in self.completions]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference between two models.

    Attributes:
        samples: number of samples.
        differing: indices of the samples with different completions.
        gap: largest difference of a token's log-probability.
        mean_gap: mean difference of a token's log-probability.
    """

    samples: int
    differing: tuple[int, ...]
    gap: float
    mean_gap: float

    def fits(self, bound: Bound) -> bool:
        """Return whether the difference is within the bound."""
        return len(self.differing) <= bound.fraction * self.samples and self.gap <= bound.gap


def generate_completions(
    backend: Backend, policy: Policy, verification_set: VerificationSet, references: Sequence[str] | None = None
) -> GreedyCompletions:
    """Generate a completion per sample, and compute the log-probabilities of ``references``.

    Args:
        backend: the backend of the model.
        policy: the model.
        verification_set: the samples.
        references: completions whose token log-probabilities are computed. Default: the generated ones.
    """
    section = verification_set.recipe.evaluation
    sampling, size, rows = Sampling(section.max_completion_tokens), section.batch_size, verification_set.rows
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    found = [group[0] for batch in batches for group in backend.generate(policy, batch, sampling)]
    return GreedyCompletions(found, backend.log_probs(policy, rows, references or [one.text for one in found]))


def compare(before: GreedyCompletions, after: GreedyCompletions) -> Comparison:
    """Return the difference. The log-probabilities of ``after`` must be those of the completions of ``before``."""
    pairs = zip(before.texts, after.texts, strict=True)
    differing = tuple(number for number, (old, new) in enumerate(pairs) if old != new)
    gaps = [
        abs(new - old)
        for olds, news in zip(before.log_probs, after.log_probs, strict=True)
        for old, new in zip(olds, news, strict=True)
    ]
    # max() ignores NaN unless it comes first. A gap of NaN is within no bound.
    gap = math.nan if any(map(math.isnan, gaps)) else max(gaps, default=0.0)
    return Comparison(len(before.texts), differing, gap, sum(gaps) / max(len(gaps), 1))


def compare_lines(
    verification_set: VerificationSet, before: GreedyCompletions, after: Mapping[str, GreedyCompletions]
) -> list[dict[str, object]]:
    """Return one line of JSON per sample: its id, the completion before, and the completions after by model."""
    return [
        {"id": sample.id, "before": old, "same": all(one.texts[i] == old for one in after.values())}
        | {name: one.texts[i] for name, one in after.items()}
        for i, (sample, old) in enumerate(zip(verification_set.samples, before.texts, strict=True))
    ]
