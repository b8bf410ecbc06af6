"""Scores and labels of multiple choice, and its majority baseline, which never looks at an image."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from toolkit.data.sample import Answer, Sample
from toolkit.tasks.mcq.prompt import write_completion
from toolkit.tasks.mcq.rewards import explanation, letter
from toolkit.tasks.mcq.rewards import format as keeps_format
from toolkit.tasks.mcq.schema import fold

RESULTS_BY = ("question_type",)
"""The columns whose values get results of their own."""


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """accuracy, token_f1 of the explanation (None without a reference explanation), and format."""
    return {
        "accuracy": letter(sample, answer),
        "token_f1": explanation(sample, answer),
        "format": keeps_format(sample, answer),
    }


def labels(sample: Sample, answer: Answer) -> tuple[str, str | None]:
    """The right letter and the one that was read."""
    return sample.reference["letter"], answer.values.get("letter")


def baseline(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """The majority baseline's completion, without an explanation."""
    choose_letter = majority(samples)

    def complete(sample: Sample) -> str:
        name = choose_letter(sample)
        return write_completion(name, sample.fields["options"][name], "")

    return complete


def majority(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Sample -> the letter that the better of two rules chooses, judged on the training rows.

    The rules: always the letter that is most often right; the offered option whose text is most often right. A row
    does not count for itself when the second is judged (leave one out): texts that occur once would all look right.
    """
    letters, texts = Counter[str](), Counter[str]()
    for sample in samples:
        letters[sample.reference["letter"]] += 1
        texts[fold(sample.reference["text"])] += 1
    by_letter = _rank(letters)
    right_letter = right_text = 0
    for sample in samples:
        right = sample.reference["letter"]
        own = fold(sample.reference["text"])
        texts[own] -= 1
        right_letter += _most_frequent_letter(sample, by_letter) == right
        right_text += _most_frequent_text(sample, texts, by_letter) == right
        texts[own] += 1
    if right_text > right_letter:
        return lambda sample: _most_frequent_text(sample, texts, by_letter)
    return lambda sample: _most_frequent_letter(sample, by_letter)


def _rank(letters: Counter[str]) -> list[str]:
    """Most frequent first, ties in the order of the alphabet."""
    return sorted(letters, key=lambda letter: (-letters[letter], letter))


def _most_frequent_letter(sample: Sample, by_letter: Iterable[str]) -> str:
    options = sample.fields["options"]
    return next((letter for letter in by_letter if letter in options), next(iter(options)))


def _most_frequent_text(sample: Sample, texts: Counter[str], by_letter: Sequence[str]) -> str:
    """The option whose text was right most often; the most frequent letter where none ever was."""
    options = sample.fields["options"]
    counts = {letter: texts[fold(option)] for letter, option in options.items()}
    best = max(counts.values())
    tied = [letter for letter, count in counts.items() if count == best]
    return _most_frequent_letter(sample, by_letter) if best <= 0 else tied[0]
