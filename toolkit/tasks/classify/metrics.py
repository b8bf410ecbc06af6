"""Scores, labels and baseline of classification, and F1 over all images for several labels."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from toolkit.data.sample import Answer, Sample
from toolkit.data.task import SetMetrics
from toolkit.tasks.classify.prompt import write_lines
from toolkit.tasks.classify.rewards import exact, f1
from toolkit.tasks.classify.rewards import format as keeps_format


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return accuracy (all classes right), f1 and label_accuracy (several labels only), and format.

    Scores:
        accuracy: reward ``exact``
        f1: reward ``f1``, for several labels
        label_accuracy: fraction of the classes with the right yes or no, for several labels
        format: reward ``format``
    """
    return {
        "accuracy": exact(sample, answer),
        "f1": f1(sample, answer),
        "label_accuracy": label_accuracy(sample, answer),
        "format": keeps_format(sample, answer),
    }


def label_accuracy(sample: Sample, answer: Answer) -> float | None:
    """Return the fraction of the known classes with the right yes or no. None if an image has one label."""
    if not sample.fields["multi"]:
        return None
    known = _truth(sample)
    answers: Mapping[str, bool] = {} if answer.problem else answer.values.get("answers", {})
    return sum(answers.get(name) == present for name, present in known.items()) / len(known) if known else None


def labels(sample: Sample, answer: Answer) -> tuple[str, str | None] | None:
    """Return the reference and the parsed class. None if images have several labels."""
    if sample.fields["multi"]:
        return None
    return sample.reference["labels"][0], answer.values.get("label")


def stratum(sample: Sample) -> str:
    """Return the class, or the set of classes. Without one it is "(none)"."""
    return ", ".join(sorted(sample.reference["labels"])) or "(none)"


def baseline(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Return the majority baseline: the most frequent class, or the classes that more than half of the images have."""
    present, known, rows = Counter[str](), Counter[str](), Counter[str]()
    for sample in samples:
        truth = _truth(sample)
        rows.update(sample.reference["labels"])
        known.update(truth.keys())  # the values of a mapping would be added
        present.update(name for name, here in truth.items() if here)
    most_frequent = max(rows, key=lambda name: (rows[name], name), default="")

    def complete(sample: Sample) -> str:
        if not sample.fields["multi"]:
            return most_frequent
        return write_lines({name: 2 * present[name] > known[name] for name in sample.fields["labels"]})

    return complete


class LabelSets(NamedTuple):
    """The classes of one image, and those that an answer names, without the classes that the row leaves open."""

    known: frozenset[str]
    present: frozenset[str]
    named: frozenset[str]


def label_sets(sample: Sample, answer: Answer) -> LabelSets | None:
    """Return the classes of an image with several labels. An unparsed answer names no class."""
    if not sample.fields["multi"]:
        return None
    truth = _truth(sample)
    named = () if answer.problem else answer.values.get("labels", ())
    return LabelSets(
        frozenset(truth), frozenset(name for name, here in truth.items() if here), frozenset(named) & frozenset(truth)
    )


def f1_of_all(parts: Sequence[LabelSets]) -> Mapping[str, float | None]:
    """Return F1 over all pairs of image and class, and the mean F1 of the classes that are present or named.

    >>> both = frozenset({"a", "b"})
    >>> f1_of_all([LabelSets(both, frozenset("a"), both), LabelSets(both, both, both)])
    {'micro F1': 0.8571428571428571, 'macro F1': 0.8333333333333333}
    """
    shared, either = Counter[str](), Counter[str]()
    for part in parts:
        shared.update(part.present & part.named)
        either.update(part.present)
        either.update(part.named)
    each = [2 * shared[name] / count for name, count in either.items()]
    return {
        "micro F1": 2 * sum(shared.values()) / sum(either.values()) if either else None,
        "macro F1": sum(each) / len(each) if each else None,
    }


SET_METRICS = SetMetrics(label_sets, f1_of_all)


def _truth(sample: Sample) -> Mapping[str, bool]:
    present, unknown = sample.reference["labels"], sample.reference["unknown"]
    return {name: name in present for name in sample.fields["labels"] if name not in unknown}
