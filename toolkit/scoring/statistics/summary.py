"""Summary of an evaluation: metrics overall and by column, parse failures, and comparisons."""

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from toolkit.errors import DataError
from toolkit.identifiers import hidden_id
from toolkit.scoring.statistics.bootstrap import Draws
from toolkit.scoring.statistics.classification import (
    F1,
    ClassificationMetrics,
    class_mean,
    count_classes,
    metrics_from_counts,
)
from toolkit.scoring.statistics.confusion_matrix import ConfusionMatrix, confusion_matrix
from toolkit.scoring.statistics.intervals import Estimate, proportion
from toolkit.scoring.statistics.paired import Paired, paired_difference

NOT_GIVEN = "(not given)"
"""The label of samples without a value in a column."""

AGE_EDGES = (0, 30, 45, 60, 75)
"""Age bins in years, as common in skin registries: 0-29, 30-44, 45-59, 60-74, 75+."""

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """One scored answer.

    ``scores`` are in [0, 1], or None if a score does not apply. ``label`` is (true, predicted or None) if the task has
    labels. ``by`` has the group-by columns. ``problem`` says why the answer was not parsed. ``part`` is what
    ``SetMetrics`` need of this answer. None: the task has none, or they do not apply.
    """

    id: str
    group: str
    scores: Mapping[str, float | None]
    label: tuple[str, str | None] | None = None
    by: Mapping[str, str] = field(default_factory=dict)
    truncated: bool = False
    problem: str | None = None
    part: Any = None
    probabilities: Mapping[str, float] | None = None
    """Class -> probability. None: they were not computed."""
    truth: Mapping[str, bool] = field(default_factory=dict)
    """Class -> whether it is right, without the classes that the reference leaves open."""
    place: str = field(default="", compare=False)
    """File and number of the row, for results. The id can name a patient."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics of a set of answers.

    Attributes:
        n: number of answers.
        groups: number of patients, lesions or images.
        scores: score -> its mean over the answers that it applies to.
        macro_f1: macro-F1 of the labels. None if the task has no labels.
        labels: balanced accuracy, and each class against the rest. None if the task has no labels.
        truncated: fraction of the completions that reached the token limit.
        unreadable: fraction of the completions without a parsed answer.
    """

    n: int
    groups: int
    scores: Mapping[str, Estimate]
    macro_f1: Estimate | None
    labels: ClassificationMetrics | None
    truncated: Estimate
    unreadable: Estimate


@dataclass(frozen=True, slots=True)
class Failure:
    """A reason for unparsed answers, its count, and the rows of the first few."""

    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """All metrics of an evaluation, each with its n and its interval.

    Attributes:
        overall: metrics of all answers.
        by: column -> value -> metrics. Values are in natural sort order.
        not_found: requested columns that no answer has.
        failures: reasons for unparsed answers, the most frequent first.
        confusion: true and predicted labels.
    """

    overall: Metrics
    by: Mapping[str, Mapping[str, Metrics]]
    not_found: tuple[str, ...]
    failures: tuple[Failure, ...]
    confusion: ConfusionMatrix

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries for JSON, without NaN."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One score of two evaluations, on the questions that both have."""

    score: str
    paired: Paired
    only_before: int
    """Questions that the later evaluation lacks, or to which the score does not apply there."""
    only_after: int


def summarise(
    rows: Sequence[ScoredAnswer], by: Sequence[str], resamples: int, seed: int, positive: str | None = None
) -> Summary:
    """Return all metrics of an evaluation. An unparsed answer stays in every n.

    Args:
        rows: The scored answers.
        by: Columns of ``ScoredAnswer.by`` whose values get their own metrics.
        resamples: Bootstrap samples for intervals that Wilson's formula does not cover.
        seed: Seed of the bootstrap.
        positive: The label of interest, such as melanoma. See ``ClassificationMetrics``.
    """
    draws = Draws(resamples, seed)
    found = [column for column in by if any(column in row.by for row in rows)]
    labels = [row.label for row in rows if row.label is not None]
    return Summary(
        overall=_figures(rows, draws, positive),
        by={
            column: {value: _figures(part, draws, positive) for value, part in _parts(rows, column).items()}
            for column in found
        },
        not_found=tuple(column for column in by if column not in found),
        failures=_failures(rows),
        confusion=confusion_matrix([true for true, _ in labels], [predicted for _, predicted in labels]),
    )


def compare(
    before: Sequence[ScoredAnswer], after: Sequence[ScoredAnswer], score: str, resamples: int, seed: int
) -> Comparison:
    """Return the paired difference of one score between two evaluations, matched by sample id.

    Raises:
        DataError: An id occurs twice in one evaluation, or no question is in both.
    """
    old, new = _values(before, score), _values(after, score)
    both = [row for row in after if row.id in old and row.id in new]
    if not both:
        rule = "two evaluations must have at least one question in common"
        raise DataError("evaluate.no_common_questions", rule, place=score)
    paired = paired_difference(
        [old[row.id] for row in both],
        [new[row.id] for row in both],
        [row.group for row in both],
        resamples,
        seed,
    )
    return Comparison(score, paired, len(old) - len(both), len(new) - len(both))


def bin_label(value: object, edges: Sequence[float]) -> str:
    """Return the label of the bin of a value. Each edge is the first value of its bin.

    >>> [bin_label(age, AGE_EDGES) for age in (0, 29.5, "30", 75.0, -1, None, "unknown")]
    ['0-29', '0-29', '30-44', '75+', '<0', '(not given)', 'unknown']
    >>> [bin_label(fraction, (0, 0.01, 0.1)) for fraction in (0.009, 0.1)]
    ['0 to <0.01', '0.1+']

    Args:
        value: A number or its text. None, blank text and NaN are "(not given)". Other text is returned unchanged.
        edges: Increasing numbers.

    Raises:
        ValueError: ``edges`` is empty or not increasing.
    """
    if not edges or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"edges must rise, got {list(edges)}")
    text = "" if value is None else str(value).strip()
    try:
        number = float(text or "nan")
    except ValueError:
        return text
    return NOT_GIVEN if math.isnan(number) else _bin_name(bisect_right(edges, number), edges)


def _bin_name(index: int, edges: Sequence[float]) -> str:
    """Return the label of the bin below edge ``index``."""
    if index == 0:
        return f"<{edges[0]:g}"
    low = edges[index - 1]
    if index == len(edges):
        return f"{low:g}+"
    high = edges[index]
    if not all(float(edge).is_integer() for edge in edges):
        return f"{low:g} to <{high:g}"
    return f"{low:g}" if high == low + 1 else f"{low:g}-{high - 1:g}"


def _figures(rows: Sequence[ScoredAnswer], draws: Draws, positive: str | None) -> Metrics:
    groups = [row.group for row in rows]
    names = dict.fromkeys(name for row in rows for name in row.scores)
    macro_f1, labels = _labels(rows, draws, positive)
    return Metrics(
        n=len(rows),
        groups=len(set(groups)),
        scores={name: _score(rows, name, draws) for name in names},
        macro_f1=macro_f1,
        labels=labels,
        truncated=proportion([float(row.truncated) for row in rows], groups, draws.resamples, draws.seed),
        unreadable=proportion([float(row.problem is not None) for row in rows], groups, draws.resamples, draws.seed),
    )


def _score(rows: Sequence[ScoredAnswer], name: str, draws: Draws) -> Estimate:
    pairs = [(value, row.group) for row in rows if (value := row.scores.get(name)) is not None]
    return proportion([value for value, _ in pairs], [group for _, group in pairs], draws.resamples, draws.seed)


def _labels(
    rows: Sequence[ScoredAnswer], draws: Draws, positive: str | None
) -> tuple[Estimate | None, ClassificationMetrics | None]:
    """Return macro-F1 and the classification metrics from the same bootstrap samples."""
    labelled = [(*row.label, row.group) for row in rows if row.label is not None]
    if not labelled:
        return None, None
    true, predicted, groups = zip(*labelled, strict=True)
    also = () if positive is None else (positive,)
    counted = count_classes(true, predicted, groups, draws.resamples, draws.seed, also)
    return class_mean(counted, F1), metrics_from_counts(counted, predicted, positive)


def _parts(rows: Sequence[ScoredAnswer], column: str) -> dict[str, list[ScoredAnswer]]:
    parts: dict[str, list[ScoredAnswer]] = {}
    for row in rows:
        parts.setdefault(row.by.get(column, NOT_GIVEN), []).append(row)
    return {value: parts[value] for value in sorted(parts, key=_natural)}


def _natural(text: str) -> list[Any]:
    """Return a natural sort key, so that 5-9 precedes 10-14."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", text))]


def _failures(rows: Sequence[ScoredAnswer]) -> tuple[Failure, ...]:
    ids: dict[str, list[str]] = {}
    for row in rows:
        if row.problem is not None:
            ids.setdefault(row.problem, []).append(row.place or hidden_id(row.id))
    found = [Failure(reason, len(of), tuple(of[:_EXAMPLES])) for reason, of in ids.items()]
    return tuple(sorted(found, key=lambda failure: (-failure.count, failure.reason)))


def _values(rows: Sequence[ScoredAnswer], score: str) -> dict[str, float]:
    ids = [row.id for row in rows]
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise DataError(
            "evaluate.question_repeated", "a question must occur once in an evaluation", place=score, value=twice
        )
    return {row.id: value for row in rows if (value := row.scores.get(score)) is not None}
