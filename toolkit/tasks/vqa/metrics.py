"""Scores, labels and the majority baseline of open and closed questions."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.text import normalise
from toolkit.scoring.yes_no import yes_or_no
from toolkit.tasks.vqa.rewards import exact, token_f1
from toolkit.tasks.vqa.rewards import format as keeps_format

RESULTS_BY = ("question_type",)
"""Columns with a separate result for each value."""

Kind = tuple[str | None, str | None]
"""Stated answer type and question type. None means all of them."""


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return score (exact match of closed, token F1 of open questions), both separately, and format.

    Scores:
        score: exact match of closed and token F1 of open questions
        closed_accuracy: reward ``exact``
        open_token_f1: reward ``token_f1``
        format: reward ``format``
    """
    closed, opened = exact(sample, answer), token_f1(sample, answer)
    return {
        "score": opened if closed is None else closed,
        "closed_accuracy": closed,
        "open_token_f1": opened,
        "format": keeps_format(sample, answer),
    }


def labels(sample: Sample, answer: Answer) -> tuple[str, str | None] | None:
    """Return the reference and the parsed answer as yes or no. None unless the reference is one of them."""
    expected = yes_or_no(str(sample.reference["answer"]))
    if not sample.reference["closed"] or expected is None:
        return None
    found = answer.values.get("yes_no")
    return expected, found if found in ("yes", "no") else None


def baseline(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Return sample -> the most frequent training answer among questions of its kind.

    A kind is the answer type that the source states and the question type. Rows without these columns are of one kind,
    because the reference of a row must not decide how the baseline answers it. Answers that differ only in case and
    punctuation count as one, and so do all words for yes and all words for no.
    """
    counts: dict[Kind, Counter[str]] = defaultdict(Counter)
    spelling: dict[str, str] = {}
    for sample in samples:
        answer = str(sample.reference["answer"])
        key = yes_or_no(answer) or normalise(answer)
        spelling.setdefault(key, answer)
        for kind in _kinds(sample):
            counts[kind][key] += 1
    best = {kind: spelling[counter.most_common(1)[0][0]] for kind, counter in counts.items()}
    return lambda sample: next((best[kind] for kind in _kinds(sample) if kind in best), "yes")


def _kinds(sample: Sample) -> tuple[Kind, ...]:
    """Return the kinds of a question, most specific first. Only columns of the source decide."""
    stated, question_type = sample.fields.get("answer_type"), sample.fields.get("question_type") or ""
    return tuple(dict.fromkeys(((stated, question_type), (stated, None), (None, question_type), (None, None))))
