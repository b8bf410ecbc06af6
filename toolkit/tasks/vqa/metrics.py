"""Majority baseline of open and closed questions."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from toolkit.data.sample import Sample
from toolkit.scoring.text import normalise

Kind = tuple[bool, str | None]
"""Closed or open, and the question type (None for all types)."""


def baseline(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Return sample -> the most frequent training answer among questions of its kind.

    Closed and open questions are counted separately, and by question type if the training rows have it. Answers that
    differ only in case and punctuation count as one.
    """
    counts: dict[Kind, Counter[str]] = defaultdict(Counter)
    spelling: dict[str, str] = {}
    for sample in samples:
        answer = str(sample.reference["answer"])
        spelling.setdefault(normalise(answer), answer)
        for kind in _kinds(sample):
            counts[kind][normalise(answer)] += 1
    best = {kind: spelling[counter.most_common(1)[0][0]] for kind, counter in counts.items()}
    return lambda sample: next((best[kind] for kind in _kinds(sample) if kind in best), "yes")


def _kinds(sample: Sample) -> tuple[Kind, Kind]:
    closed = sample.fields["answer_type"] == "closed"
    return (closed, sample.fields.get("question_type") or ""), (closed, None)
