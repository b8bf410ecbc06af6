"""Rewards for reports: rouge_l, bleu, finding_f1, length, format.

``sample.reference`` has ``report``. ``answer.values`` has ``text``, the parsed report. All rewards read English text.
rouge_l, bleu and length read other languages too.
"""

from collections.abc import Callable, Mapping

from toolkit.data.sample import Answer, Reward, Sample
from toolkit.scoring import reports
from toolkit.scoring.findings import find_findings
from toolkit.scoring.findings import finding_f1 as _finding_f1
from toolkit.scoring.text import overlap, tokens
from toolkit.tasks.report_generation.parse import plain
from toolkit.tasks.report_generation.sections import section

EXAMPLE = Sample(
    id="example",
    task="report_generation",
    group="image-1",
    images=(),
    fields={"target": "report", "headings": ("FINDINGS", "IMPRESSION")},
    reference={"report": "FINDINGS:\nLeft effusion. No pneumothorax.\nIMPRESSION:\nPleural effusion."},
)
"""The sample of the worked examples in this file."""


def rouge_l(sample: Sample, answer: Answer) -> float:
    """Return ROUGE-L of the report.

    >>> rouge_l(EXAMPLE, Answer("", {"text": "Left effusion. No pneumothorax."}))  # 4 in common of 4 and 8
    0.6666666666666666
    """
    return _scored(reports.rouge_l, sample, answer)


def bleu(sample: Sample, answer: Answer) -> float:
    """Return sacrebleu's BLEU of the report. Short reports without a common 4-gram are smoothed.

    >>> bleu(EXAMPLE, Answer("", {"text": "Normal."})) < 0.01
    True
    """
    return _scored(reports.sentence_bleu, sample, answer)


def finding_f1(sample: Sample, answer: Answer) -> float | None:
    """Return the F1 of the findings that are present or uncertain. None if the reference mentions no finding.

    >>> finding_f1(EXAMPLE, Answer("", {"text": "No pleural effusion. Left pneumothorax."}))  # both are wrong
    0.0
    """
    return _finding_f1(_read(answer), _reference(sample))


def length(sample: Sample, answer: Answer) -> float:
    """Return the shorter of both lengths divided by the longer, in words.

    >>> length(EXAMPLE, Answer("", {"text": "Left effusion. No pneumothorax."}))
    0.5
    """
    return _scored(reports.length_score, sample, answer)


def format(sample: Sample, answer: Answer) -> float:
    """Return the fraction of the requested sections that the report has, with a text. 1 if none is requested.

    >>> format(EXAMPLE, Answer("", {"text": "FINDINGS: Left effusion."}))
    0.5
    """
    if answer.problem is not None:
        return 0.0
    names = sample.fields["headings"]
    return sum(bool(section(_read(answer), name.lower())) for name in names) / len(names) if names else 1.0


REWARDS: Mapping[str, Reward] = {
    "rouge_l": rouge_l,
    "bleu": bleu,
    "finding_f1": finding_f1,
    "length": length,
    "format": format,
}

REWARD_WEIGHTS: Mapping[str, float] = {"rouge_l": 1.0, "bleu": 0.0, "finding_f1": 1.0, "length": 0.1, "format": 0.1}
"""Maps rewards to default weights. A reward with weight 0 is off unless the recipe sets a weight."""

ALL_OR_NOTHING: frozenset[str] = frozenset()
"""Rewards that are 0 or 1 for nearly every answer."""


def why_words(sample: Sample, answer: Answer) -> str:
    """Return the first words that the report lacks and adds. Both scores also depend on their order."""
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    found = overlap(_read(answer), _reference(sample))
    parts = (("lacks", found.missed), ("adds", found.extra))
    listed = (f"{verb} {len(words)}: {', '.join(words[:5])}" for verb, words in parts if words)
    return "; ".join(listed) or "the same words"


def why_finding_f1(sample: Sample, answer: Answer) -> str:
    """Return the findings of both reports."""
    found = [
        ", ".join(f"{name} {status}" for name, status in find_findings(text).items()) or "none"
        for text in (_read(answer), _reference(sample))
    ]
    return f"report: {found[0]}; reference: {found[1]}"


def why_length(sample: Sample, answer: Answer) -> str:
    """Return both lengths."""
    return f"{len(tokens(_read(answer)))} words, the reference has {len(tokens(_reference(sample)))}"


def why_format(sample: Sample, answer: Answer) -> str:
    """Return the sections that the report lacks."""
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    missing = [name for name in sample.fields["headings"] if not section(_read(answer), name.lower())]
    return f"missing sections: {', '.join(missing)}" if missing else "all requested sections"


WHY = {
    "rouge_l": why_words,
    "bleu": why_words,
    "finding_f1": why_finding_f1,
    "length": why_length,
    "format": why_format,
}
"""Reward -> explanation of its value."""


def _scored(score: Callable[[str, str], float], sample: Sample, answer: Answer) -> float:
    return score(_read(answer), _reference(sample)) if answer.problem is None else 0.0


def _read(answer: Answer) -> str:
    return str(answer.values.get("text") or "")


def _reference(sample: Sample) -> str:
    """Return the report of the row without what the parser removes from an answer."""
    return plain(str(sample.reference["report"]))
