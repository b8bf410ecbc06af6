"""The majority baseline of multiple choice: what can be had without looking at an image."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from toolkit.data.sample import Sample
from toolkit.tasks.mcq.schema import fold


def majority(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Return sample -> the letter that the better of two rules chooses, judged on the training rows.

    The rules: always the letter that is most often right. The offered option whose text is most often right. A row
    does not count for itself when the second is judged (leave one out): texts that occur once would all look right.
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
    """Most frequent first, ties in the order of the alphabet."""
    return sorted(letters, key=lambda letter: (-letters[letter], letter))


def _most_frequent_letter(sample: Sample, by_letter: Iterable[str]) -> str:
    options = sample.fields["options"]
    return next((letter for letter in by_letter if letter in options), next(iter(options)))


def _most_frequent_text(sample: Sample, texts: Counter[str], by_letter: Sequence[str]) -> str:
    """Return the option whose text was right most often. The most frequent letter where none ever was."""
    options = sample.fields["options"]
    counts = {letter: texts[fold(option)] for letter, option in options.items()}
    best = max(counts.values())
    tied = [letter for letter, count in counts.items() if count == best]
    return _most_frequent_letter(sample, by_letter) if best <= 0 else tied[0]
