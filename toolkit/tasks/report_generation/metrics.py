"""Scores and baselines of reports."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.findings import positive_findings
from toolkit.scoring.text import tokens
from toolkit.tasks.report_generation.rewards import bleu, finding_f1, length, rouge_l
from toolkit.tasks.report_generation.rewards import format as keeps_format

COMPARED = 200
"""Training reports, evenly spaced, among which the baseline is searched."""


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return ROUGE-L, BLEU of the report, the F1 of its findings, and whether it has the length and the sections."""
    return {
        "rouge_l": rouge_l(sample, answer),
        "finding_f1": finding_f1(sample, answer),
        "bleu": bleu(sample, answer),
        "length": length(sample, answer),
        "format": keeps_format(sample, answer),
    }


def labels(sample: Sample, answer: Answer) -> None:
    """Return None, because a report has no single class."""
    return


def baseline(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Return sample -> the medoid of the training reports: the one with the highest mean token F1 with the others.

    At most ``COMPARED`` reports are compared. A report that occurs often has many equal ones among them. Among equal
    means, the first one wins.
    """
    texts = _evenly_spaced(samples)
    bags = [Counter(tokens(text)) for text in texts]
    sizes = [sum(bag.values()) for bag in bags]

    def mean_f1(number: int) -> float:
        return sum(
            2 * sum((bags[number] & bag).values()) / (sizes[number] + size or 1)
            for bag, size in zip(bags, sizes, strict=True)
        )

    best = texts[max(range(len(texts)), key=mean_f1)]
    return lambda sample: best


def finding_baseline(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Return sample -> the training report with the highest mean F1 of its findings over the training reports."""
    sets = Counter(map(positive_findings, texts := _evenly_spaced(samples)))

    def mean_f1(text: str) -> float:
        own = positive_findings(text)
        return sum(count * 2 * len(own & found) / (len(own) + len(found) or 1) for found, count in sets.items())

    best = max(texts, key=mean_f1)
    return lambda sample: best


def _evenly_spaced(samples: Sequence[Sample]) -> list[str]:
    step = max(1, -(-len(samples) // COMPARED))
    return [str(samples[number].reference["report"]) for number in range(0, len(samples), step)]
