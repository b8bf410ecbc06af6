"""The proof of an export: the same questions asked before and after, answers and their probabilities compared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolkit.data.sample import Sample
from toolkit.data.task import Task
from toolkit.evaluation.answers import read_answer
from toolkit.models import Backend
from toolkit.models.backend import Completion, Policy, Row, Sampling
from toolkit.recipe import Recipe
from toolkit.runfolder import Record


@dataclass(frozen=True, slots=True)
class Bound:
    """What may differ: this ``share`` of the answers, and the logarithm of a token's probability by ``gap``."""

    share: float
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
"""Bits of merged or reloaded weights, or a quantisation -> what may differ.

In 32 bits only the order of sums changes: 1e-5 was measured, and no answer. All else rounds, and one token that was
nearly tied may turn an answer. The gaps are twice and more those measured on the trained tiny model, whose few weights
feel rounding more than a large model's. The shares are meant for 16 questions: of q8_0, which turned 16 of 1,000
answers, 2 may differ; 3 and more would come by chance once in 500 times. The figures are in
docs/concepts/export_verification.md.
"""


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a proof: ``samples`` as the task has them, and ``rows`` as a model sees them."""

    recipe: Recipe
    task: Task
    samples: Sequence[Sample]
    rows: Sequence[Row]
    held_out: bool = True
    """False: they are rows that were trained on, for want of others."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Greedy answers, and the log-probabilities of the tokens of the answers that they are compared with."""

    answers: Sequence[Completion]
    log_probs: Sequence[Sequence[float]]

    @property
    def texts(self) -> list[str]:
        """The answers' texts."""
        return [answer.text for answer in self.answers]


@dataclass(frozen=True, slots=True)
class Comparison:
    """``differing``: numbers of the questions with another answer; gaps are between log-probabilities of tokens."""

    questions: int
    differing: tuple[int, ...]
    gap: float
    mean_gap: float

    def fits(self, bound: Bound) -> bool:
        """Whether no more differs than may."""
        return len(self.differing) <= bound.share * self.questions and self.gap <= bound.gap

    def to_record(self) -> Record:
        """For the stage's record."""
        gaps = {"gap": round(self.gap, 5), "mean_gap": round(self.mean_gap, 6)}
        return {"questions": self.questions, "differing": len(self.differing), **gaps}


def ask(backend: Backend, policy: Policy, questions: Questions, answers: Sequence[str] | None = None) -> Asked:
    """Ask all questions, and find the log-probabilities of ``answers`` (default: those that came)."""
    section = questions.recipe.evaluation
    sampling, size, rows = Sampling(section.max_completion_tokens), section.batch_size, questions.rows
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    found = [group[0] for batch in batches for group in backend.generate(policy, batch, sampling)]
    return Asked(found, backend.log_probs(policy, rows, answers or [one.text for one in found]))


def compare(before: Asked, after: Asked) -> Comparison:
    """``after`` was asked with the answers of ``before``."""
    pairs = zip(before.texts, after.texts, strict=True)
    differing = tuple(number for number, (old, new) in enumerate(pairs) if old != new)
    gaps = [
        abs(new - old)
        for olds, news in zip(before.log_probs, after.log_probs, strict=True)
        for old, new in zip(olds, news, strict=True)
    ]
    # max() passes over a NaN unless it comes first; a gap that is no number fits no bound.
    gap = math.nan if any(map(math.isnan, gaps)) else max(gaps, default=0.0)
    return Comparison(len(before.texts), differing, gap, sum(gaps) / max(len(gaps), 1))


def primary_score(questions: Questions, answers: Sequence[Completion]) -> Record:
    """The mean of the task's primary score over the answers that can be judged, and how many these are."""
    task = questions.task
    judged = [
        task.scores(sample, read_answer(task, sample, answer)).get(task.primary)
        for sample, answer in zip(questions.samples, answers, strict=True)
    ]
    scores = [score for score in judged if score is not None]
    return {"name": task.primary, "n": len(scores), "value": sum(scores) / len(scores) if scores else None}


def side_by_side(questions: Questions, before: Asked, after: Mapping[str, Asked]) -> list[Record]:
    """One line a question: its id, the answer before, and the answers after, by the name of what gave them."""
    return [
        {"id": sample.id, "before": old, "same": all(one.texts[i] == old for one in after.values())}
        | {name: one.texts[i] for name, one in after.items()}
        for i, (sample, old) in enumerate(zip(questions.samples, before.texts, strict=True))
    ]
