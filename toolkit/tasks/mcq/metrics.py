"""Majority baseline of multiple choice: the accuracy that is possible without the images."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from toolkit.data.sample import Sample
from toolkit.tasks.mcq.schema import fold


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
    right_letter = right_text = 0
    for sample in samples:
        letter = sample.reference["letter"]
        own = fold(sample.reference["text"])
        texts[own] -= 1
        right_letter += _most_frequent_letter(sample, by_letter) == letter
        right_text += _most_frequent_text(sample, texts, by_letter) == letter
        texts[own] += 1
    if right_text > right_letter:
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
