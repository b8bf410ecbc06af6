"""Scores and the majority baseline of the last answer of a conversation."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.text import normalise
from toolkit.tasks.chat.rewards import exact, length, token_f1


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return token F1, exact match and the ratio of the lengths.

    Scores:
        token_f1: reward ``token_f1``
        exact_match: reward ``exact``
        length: reward ``length``
    """
    return {
        "token_f1": token_f1(sample, answer),
        "exact_match": exact(sample, answer),
        "length": length(sample, answer),
    }


def labels(sample: Sample, answer: Answer) -> None:
    """Return None, because a free answer has no class."""
    return


def baseline(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Return sample -> the most frequent last answer of the training conversations.

    Answers that differ only in case and punctuation count as one. Among equally frequent answers, the first one wins.
    """
    counts: Counter[str] = Counter()
    spelling: dict[str, str] = {}
    for sample in samples:
        answer = str(sample.reference["answer"])
        spelling.setdefault(normalise(answer), answer)
        counts[normalise(answer)] += 1
    best = spelling[counts.most_common(1)[0][0]]
    return lambda sample: best
