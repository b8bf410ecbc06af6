"""Scores and labels of multiple choice, and its majority baseline, which never looks at an image."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from toolkit.data.sample import Answer, Sample
from toolkit.tasks.mcq.options import fold
from toolkit.tasks.mcq.prompt import write_completion
from toolkit.tasks.mcq.rewards import explanation, letter
from toolkit.tasks.mcq.rewards import format as keeps_format

RESULTS_BY = ("question_type",)
"""Columns with a separate result for each value."""


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return accuracy, token_f1 of the explanation (None without a reference explanation), and format.

    Scores:
        accuracy: reward ``letter``
        token_f1: reward ``explanation``
        format: reward ``format``
    """
    return {
        "accuracy": letter(sample, answer),
        "token_f1": explanation(sample, answer),
        "format": keeps_format(sample, answer),
    }


def labels(sample: Sample, answer: Answer) -> tuple[str, str | None]:
    """Return the reference letter and the parsed letter."""
    return sample.reference["letter"], answer.values.get("letter")


def baseline(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Return the majority baseline, which completes without an explanation."""
    choose_letter = majority(samples)

    def complete(sample: Sample) -> str:
        name = choose_letter(sample)
        return write_completion(sample, name, sample.fields["options"][name], "")

    return complete


def majority(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Return sample -> letter by the better of two rules, evaluated on the training rows.

    The rules choose the letter that is correct most often, or the offered option whose text is correct most often. The
    second rule is evaluated leave-one-out, because texts that occur once would otherwise always look correct.
    """
    letters, texts = Counter[str](), Counter[str]()
    for sample in samples:
        letters[sample.reference["letter"]] += 1
        texts[fold(sample.reference["text"])] += 1
    by_letter = _rank(letters)
    correct_by_letter = correct_by_text = 0
    for sample in samples:
        correct = sample.reference["letter"]
        own = fold(sample.reference["text"])
        texts[own] -= 1
        correct_by_letter += _most_frequent_letter(sample, by_letter) == correct
        correct_by_text += _most_frequent_text(sample, texts, by_letter) == correct
        texts[own] += 1
    if correct_by_text > correct_by_letter:
        return lambda sample: _most_frequent_text(sample, texts, by_letter)
    return lambda sample: _most_frequent_letter(sample, by_letter)


def _rank(letters: Counter[str]) -> list[str]:
    """Return the letters by frequency, ties in alphabetical order."""
    return sorted(letters, key=lambda letter: (-letters[letter], letter))


def _most_frequent_letter(sample: Sample, by_letter: Iterable[str]) -> str:
    options = sample.fields["options"]
    return next((letter for letter in by_letter if letter in options), next(iter(options)))


def _most_frequent_text(sample: Sample, texts: Counter[str], by_letter: Sequence[str]) -> str:
    """Return the option whose text was correct most often, or the most frequent letter if no text ever was."""
    options = sample.fields["options"]
    counts = {letter: texts[fold(option)] for letter, option in options.items()}
    best = max(counts.values())
    tied = [letter for letter, count in counts.items() if count == best]
    return _most_frequent_letter(sample, by_letter) if best <= 0 else tied[0]
