"""Rewards for open and closed questions: exact, token_f1, format.

Closed questions (yes/no, either/or) are scored by exact match and open ones by token F1, as VQA-RAD (Lau et al. 2018,
doi:10.1038/sdata.2018.251) and MedGemma's model card report them. ``sample.reference`` has ``answer`` and ``closed``,
and perhaps ``alternatives`` or ``parts``. ``answer.values`` has ``text``, the parsed answer, and perhaps ``yes_no``.

With alternatives, the score is the best over all of them. Parts must all be named, in any order. A yes or no is scored
by its meaning, so "Yes" is correct if the reference is "Sí".
"""

import re
from collections.abc import Mapping

from toolkit.data.sample import Answer, Reward, Sample
from toolkit.scoring.text import Overlap, normalise, overlap, word_count
from toolkit.scoring.yes_no import find_yes_or_no, yes_or_no

WORD_LIMIT = 20
"""The longest of the 8,434 English reference answers of VQA-RAD and SLAKE has 15 words."""

EXAMPLE = Sample(
    id="example",
    task="vqa",
    group="image-1",
    images=(),
    fields={"question": "Where is the opacity?"},
    reference={"answer": "right lower lobe", "closed": False},
)
"""The sample of the worked examples in this file."""

CLOSED_EXAMPLE = Sample(
    id="closed example",
    task="vqa",
    group="image-1",
    images=(),
    fields={"question": "Is there an opacity?"},
    reference={"answer": "Yes", "closed": True},
)
"""The closed counterpart of ``EXAMPLE``."""


def exact(sample: Sample, answer: Answer) -> float | None:
    """Return 1 if the answer has the tokens of a correct one, or its yes or no, otherwise 0. None for an open question.

    >>> exact(CLOSED_EXAMPLE, Answer("yes.", {"text": "yes.", "yes_no": "yes"}))
    1.0
    >>> exact(CLOSED_EXAMPLE, Answer("no", {"text": "no", "yes_no": "no"}))
    0.0
    """
    if not sample.reference["closed"]:
        return None
    return float(answer.problem is None and any(_is_same(answer, text, sample) for text in correct_answers(sample)))


def token_f1(sample: Sample, answer: Answer) -> float | None:
    """Return the best token F1 of the answer with a correct one. None for a closed question.

    >>> token_f1(EXAMPLE, Answer("The lower lobe", {"text": "The lower lobe"}))  # 2 in common of 2 and 3
    0.8
    """
    if sample.reference["closed"]:
        return None
    return _best_overlap(sample, answer).f1 if answer.problem is None else 0.0


def format(sample: Sample, answer: Answer) -> float:
    """Return 1 for a parsed answer in one line of at most 20 words, and 0 otherwise.

    An answer with both yes and no to a yes/no question is 0 too.

    >>> format(EXAMPLE, Answer("lobe", {"text": "lobe"})), format(EXAMPLE, Answer("lobe\\nlobe", {"text": "lobe"}))
    (1.0, 0.0)
    """
    lines, words = _lines(answer), word_count(answer.text)
    return float(answer.problem is None and not _has_both(sample, answer) and len(lines) == 1 <= words <= WORD_LIMIT)


def correct_answers(sample: Sample) -> tuple[str, ...]:
    """Return every correct answer, with that of SFT first."""
    return (str(sample.reference["answer"]), *map(str, sample.reference.get("alternatives", ())))


REWARDS: Mapping[str, Reward] = {"exact": exact, "token_f1": token_f1, "format": format}


REWARD_WEIGHTS: Mapping[str, float] = {"exact": 1.0, "token_f1": 1.0, "format": 0.1}
"""Maps rewards to default weights. A reward with weight 0 is off unless the recipe sets a weight."""

ALL_OR_NOTHING = frozenset({"exact"})
"""Rewards that are 0 or 1 for nearly every answer."""


def why_exact(sample: Sample, answer: Answer) -> str:
    """Return both answers as they were compared."""
    if not sample.reference["closed"]:
        return "the question is open"
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    expected = " or ".join(f'"{normalise(text)}"' for text in correct_answers(sample))
    meaning = f" ({answer.values['yes_no']})" if "yes_no" in answer.values else ""
    return f'read "{normalise(_read(answer))}"{meaning}, reference {expected}'


def why_token_f1(sample: Sample, answer: Answer) -> str:
    """Return the words that F1 counted."""
    if sample.reference["closed"]:
        return "the question is closed"
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    found = _best_overlap(sample, answer)
    parts = {"shared": found.shared, "missed": found.missed, "extra": found.extra}
    return "; ".join(f"{part}: {' '.join(words) or 'nothing'}" for part, words in parts.items())


def why_format(sample: Sample, answer: Answer) -> str:
    """Return lines and words with their limits."""
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    if _has_both(sample, answer):
        return "yes and no are both named"
    return f"{len(_lines(answer))} lines (1 expected), {word_count(answer.text)} words (at most {WORD_LIMIT})"


WHY = {"exact": why_exact, "token_f1": why_token_f1, "format": why_format}
"""Reward -> explanation of its value."""


def _is_same(answer: Answer, text: str, sample: Sample) -> bool:
    if meaning := yes_or_no(text):
        return bool((answer.values.get("yes_no") or find_yes_or_no(_read(answer))) == meaning)
    if parts := sample.reference.get("parts"):
        return {normalise(part) for part in _AND.split(_read(answer))} == {normalise(part) for part in parts}
    return normalise(_read(answer)) == normalise(text)


def _best_overlap(sample: Sample, answer: Answer) -> Overlap:
    return max((overlap(_read(answer), text) for text in correct_answers(sample)), key=lambda found: found.f1)


def _has_both(sample: Sample, answer: Answer) -> bool:
    is_yes_no = sample.reference["closed"] and yes_or_no(str(sample.reference["answer"])) is not None
    return is_yes_no and answer.values.get("yes_no") == "both"


_AND = re.compile(r"\s*[,;]\s*(?:and\s+)?|\s+and\s+")


def _read(answer: Answer) -> str:
    return str(answer.values.get("text") or "")


def _lines(answer: Answer) -> list[str]:
    return [line for line in answer.text.splitlines() if line.strip()]
