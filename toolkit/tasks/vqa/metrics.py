"""Scores, labels and the majority baseline of open and closed questions."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.text import normalise
from toolkit.tasks.vqa.rewards import exact, token_f1
from toolkit.tasks.vqa.rewards import format as keeps_format
from toolkit.tasks.vqa.schema import YES_NO

RESULTS_BY = ("question_type",)
"""Columns with a separate result for each value."""

Kind = tuple[bool, str | None]
"""Closed or open, and the question type (None for all types)."""


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return score (exact match of closed, token F1 of open questions), both separately, and format."""
    closed, opened = exact(sample, answer), token_f1(sample, answer)
    return {
        "score": opened if closed is None else closed,
        "closed_accuracy": closed,
        "open_token_f1": opened,
        "format": keeps_format(sample, answer),
    }


def labels(sample: Sample, answer: Answer) -> tuple[str, str | None] | None:
    """Return the reference and the parsed yes or no. None unless the reference is one of them."""
    expected = normalise(str(sample.reference["answer"]))
    if not sample.reference["closed"] or expected not in YES_NO:
        return None
    read_as = normalise(str(answer.values.get("text") or ""))
    return expected, read_as if read_as in YES_NO else None


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
