"""Scores and baselines of reports."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.findings import MENTIONS, NO_FINDING, find_findings, positive_findings
from toolkit.scoring.reports import bleu_counts, corpus_bleu
from toolkit.scoring.text import tokens
from toolkit.tasks.report_generation.parse import plain
from toolkit.tasks.report_generation.rewards import bleu, finding_f1, length, rouge_l
from toolkit.tasks.report_generation.rewards import format as keeps_format

OBSERVATIONS = (*MENTIONS, NO_FINDING)
"""CheXpert's 14 observations, in the order of ``part``."""

COMPARED = 200
"""Training reports, evenly spaced, among which the baseline is searched."""


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return ROUGE-L, BLEU of the report, the F1 of its findings, and whether it has the length and the sections.

    Scores:
        rouge_l: reward ``rouge_l``
        finding_f1: reward ``finding_f1``
        bleu: reward ``bleu``
        length: reward ``length``
        format: reward ``format``
    """
    return {
        "rouge_l": rouge_l(sample, answer),
        "finding_f1": finding_f1(sample, answer),
        "bleu": bleu(sample, answer),
        "length": length(sample, answer),
        "format": keeps_format(sample, answer),
    }


def part(sample: Sample, answer: Answer) -> NDArray[np.int64]:
    """Return the counts of one report that ``set_values`` sums: those of BLEU, then of each observation.

    Each observation has 1 or 0 for: expected and predicted, only expected, only predicted. All are 0 if the reference
    mentions no observation.
    """
    text = str(answer.values.get("text") or "") if answer.problem is None else ""
    reference = plain(str(sample.reference["report"]))
    expected, predicted = positive_findings(reference), positive_findings(text)
    known = OBSERVATIONS if find_findings(reference) else ()
    found = [
        [name in expected & predicted, name in expected - predicted, name in predicted - expected] for name in known
    ]
    findings = np.array(found or np.zeros((len(OBSERVATIONS), 3)), np.int64).ravel()
    return np.concatenate([bleu_counts(text, reference), findings])


def set_values(parts: Sequence[NDArray[np.int64]]) -> Mapping[str, float | None]:
    """Return corpus BLEU, and micro and macro F1 of the observations.

    Macro F1 is the mean over the observations that a reference of the set has. None: no reference has one.
    """
    total = np.sum(parts, axis=0)
    right, missed, extra = total[-3 * len(OBSERVATIONS) :].reshape(-1, 3).T
    occurs = right + missed > 0
    f1 = 2 * right[occurs] / (2 * right + missed + extra)[occurs]
    return {
        "corpus_bleu": corpus_bleu(total[: -3 * len(OBSERVATIONS)]),
        "finding_micro_f1": float(2 * right.sum() / (2 * right + missed + extra).sum()) if occurs.any() else None,
        "finding_macro_f1": float(f1.mean()) if occurs.any() else None,
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
