"""Rewards for multiple choice with reasoning: letter, explanation, evidence, format, brevity.

The five parts and their default weights (1.0, 0.6, 0.2, 0.1, 0.1) are those of the MedGemma GRPO scripts for ReXVQA
(questions: arXiv 2506.04353). Each part reads ``answer.values``: ``letter``, ``text`` (the text after the letter),
``explanation`` (the reasoning block) and ``has_format``.

The rewards compare words. They do not understand the scope of a negation ("no effusion") or word forms ("opacity",
"opacities").
"""

from collections.abc import Iterable, Mapping
from typing import Any

from toolkit.data.sample import Answer, Reward, Sample
from toolkit.scoring.text import NEGATIONS, content_words, overlap, token_f1, tokens
from toolkit.tasks.mcq.prompt import requests_reasoning

BREVITY_LIMIT = 220
"""Maximum characters of a whole completion."""

EVIDENCE_LIMIT = 30
"""Content words of the reasoning that are not scaled down. 220 characters have about as many words."""

EXAMPLE = Sample(
    id="example",
    task="mcq",
    group="patient-1",
    images=(),
    fields={"question": "What is the main finding?", "options": {"A": "Normal", "B": "Pneumonia"}},
    reference={
        "letter": "B",
        "text": "Pneumonia",
        "explanation": "Consolidation in the right lower lobe",
        "report": "Right lower lobe consolidation. Pneumonia.",
    },
)
"""The sample of the worked examples in this file."""


def letter(sample: Sample, answer: Answer) -> float:
    """Return 1 for the reference letter and 0 otherwise, including unparsed answers.

    >>> letter(EXAMPLE, Answer("…", {"letter": "B"})), letter(EXAMPLE, Answer("…", {"letter": "A"}))
    (1.0, 0.0)
    """
    return float(answer.problem is None and answer.values.get("letter") == sample.reference["letter"])


def explanation(sample: Sample, answer: Answer) -> float | None:
    """Return token F1 with the reference explanation, for the better of reasoning block and text after the letter.

    None if the sample has no reference explanation, or no reasoning is requested, because then the text after the
    letter is that of the option. Reasoning counts even if no letter was parsed.

    >>> explanation(EXAMPLE, Answer("…", {"explanation": "Right lower lobe opacity"}))  # 3 of 4 and 5 (no "the")
    0.6666666666666666
    """
    expected = _text(sample.reference.get("explanation")) if requests_reasoning(sample) else ""
    if not tokens(expected):
        return None
    return max(token_f1(written, expected) for written in _explanations(answer))


def evidence(sample: Sample, answer: Answer) -> float | None:
    """Return the fraction of the report's content words that the reasoning uses.

    Reasoning with more content words than the report, and than ``EVIDENCE_LIMIT``, is scaled down, so a list of
    frequent words earns less than brevity. Words of the prompt (question, options, context) do not count, so copying
    the prompt earns nothing. Negations alone are not evidence. None if there is no report, the prompt already has all
    of its words, or no reasoning is requested.

    >>> evidence(EXAMPLE, Answer("…", {"explanation": "Pneumonia of the right lobe"}))  # right, lobe of 4
    0.5
    """
    expected = evidence_words(sample) if requests_reasoning(sample) else frozenset()
    used = _new_words(_text(answer.values.get("explanation")), sample)
    if not expected:
        return None
    scale = max(EVIDENCE_LIMIT, len(expected)) / max(1, len(used))
    return len(expected & used) / len(expected) * min(1.0, scale)


def format(sample: Sample, answer: Answer) -> float:
    """Return 1 for one reasoning block, one solution and nothing else, as the parser found it.

    Without requested reasoning it is 1 for "B - text of the option" and nothing else.

    >>> format(EXAMPLE, Answer("…", {"has_format": True}))
    1.0
    """
    return float(bool(answer.values.get("has_format")))


def brevity(sample: Sample, answer: Answer) -> float:
    """Return 1 for a parsed answer whose completion has at most 220 characters without surrounding blanks.

    >>> brevity(EXAMPLE, Answer("B", {"letter": "B"})), brevity(EXAMPLE, Answer("", problem="empty"))
    (1.0, 0.0)
    """
    return float(answer.problem is None and 0 < len(answer.text.strip()) <= BREVITY_LIMIT)


REWARDS: Mapping[str, Reward] = {
    "letter": letter,
    "explanation": explanation,
    "evidence": evidence,
    "format": format,
    "brevity": brevity,
}


REWARD_WEIGHTS: Mapping[str, float] = {
    "letter": 1.0,
    "explanation": 0.6,
    "evidence": 0.2,
    "format": 0.1,
    "brevity": 0.1,
}
"""Maps rewards to default weights. A reward with weight 0 is off unless the recipe sets a weight."""

ALL_OR_NOTHING = frozenset({"letter"})
"""Rewards that are 0 or 1 for nearly every answer."""


def evidence_words(sample: Sample) -> frozenset[str]:
    """Return the report's content words that the prompt does not have, without negations."""
    return _new_words(_text(sample.reference.get("report")), sample)


def why_letter(sample: Sample, answer: Answer) -> str:
    """Return the parsed and the reference letter."""
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    return f"read {answer.values.get('letter')}, reference {sample.reference['letter']}"


def why_explanation(sample: Sample, answer: Answer) -> str:
    """Return the words that F1 counted."""
    if not requests_reasoning(sample):
        return "no reasoning is requested"
    expected = _text(sample.reference.get("explanation"))
    if not tokens(expected):
        return "the sample has no reference explanation"
    best = max((overlap(written, expected) for written in _explanations(answer)), key=lambda found: found.f1)
    return f"shared: {_list(best.shared)}; missed: {_list(best.missed)}; extra: {_list(best.extra)}"


def why_evidence(sample: Sample, answer: Answer) -> str:
    """Return the used and unused words of the report."""
    if not requests_reasoning(sample):
        return "no reasoning is requested"
    expected = evidence_words(sample)
    if not expected:
        return "the sample has no report, or none of its words is missing from the prompt"
    words = _new_words(_text(answer.values.get("explanation")), sample)
    used = expected & words
    most = max(EVIDENCE_LIMIT, len(expected))
    longer = f"; {len(words)} words, scaled to {most}" if len(words) > most else ""
    return f"used: {_list(sorted(used))}; not used: {_list(sorted(expected - used))}{longer}"


def why_format(sample: Sample, answer: Answer) -> str:
    """Return the expected format."""
    with_reasoning = "one reasoning block, one solution, nothing else"
    expected = with_reasoning if requests_reasoning(sample) else "the letter and the text of an option, nothing else"
    return expected if answer.values.get("has_format") else f"not {expected}"


def why_brevity(sample: Sample, answer: Answer) -> str:
    """Return the completion's length and the limit."""
    length = len(answer.text.strip())
    sign = "<=" if length <= BREVITY_LIMIT else ">"
    unread = "" if answer.problem is None else "; no answer could be read"
    return f"{length} characters {sign} {BREVITY_LIMIT}{unread}"


WHY = {
    "letter": why_letter,
    "explanation": why_explanation,
    "evidence": why_evidence,
    "format": why_format,
    "brevity": why_brevity,
}
"""Reward -> explanation of its value."""


def _new_words(text: str, sample: Sample) -> frozenset[str]:
    """Return the content words of a text that the prompt does not have, without negations.

    Every field except the question type can be in the prompt, so the words of all of them are left out.
    """
    fields = {name: value for name, value in sample.fields.items() if name != "question_type"}
    shown = {word for text in _strings(fields) for word in tokens(text)}
    return frozenset(content_words(text)) - shown - NEGATIONS


def _explanations(answer: Answer) -> tuple[str, str]:
    return _text(answer.values.get("explanation")), _text(answer.values.get("text"))


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _strings(value: Any) -> Iterable[str]:
    """Yield all texts of a prompt field. Option letters are keys and do not count."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _list(words: Iterable[str]) -> str:
    return " ".join(words) or "nothing"
