"""Rewards for open and closed questions: exact, token_f1, format.

Closed questions (yes/no, either/or) are scored by exact match and open ones by token F1, as VQA-RAD (Lau et al. 2018,
doi:10.1038/sdata.2018.251) and MedGemma's model card report them. ``sample.reference`` has ``answer`` and ``closed``.
``answer.values`` has ``text``, the parsed answer.
"""

from collections.abc import Mapping

from toolkit.data.sample import Answer, Reward, Sample
from toolkit.scoring.text import exact_match, normalise, overlap, tokens
from toolkit.scoring.text import token_f1 as _token_f1

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
    """Return 1 if the answer has the tokens of the reference and 0 otherwise. None for an open question.

    >>> exact(CLOSED_EXAMPLE, Answer("yes.", {"text": "yes."})), exact(CLOSED_EXAMPLE, Answer("no", {"text": "no"}))
    (1.0, 0.0)
    """
    if not sample.reference["closed"]:
        return None
    return float(answer.problem is None and exact_match(_read(answer), str(sample.reference["answer"])))


def token_f1(sample: Sample, answer: Answer) -> float | None:
    """Return token F1 of the answer with the reference. None for a closed question.

    >>> token_f1(EXAMPLE, Answer("The lower lobe", {"text": "The lower lobe"}))  # 2 in common of 2 and 3
    0.8
    """
    if sample.reference["closed"]:
        return None
    return _token_f1(_read(answer), str(sample.reference["answer"])) if answer.problem is None else 0.0


def format(sample: Sample, answer: Answer) -> float:
    """Return 1 for a parsed answer in one line of at most 20 words, and 0 otherwise.

    >>> format(EXAMPLE, Answer("lobe", {"text": "lobe"})), format(EXAMPLE, Answer("lobe\\nlobe", {"text": "lobe"}))
    (1.0, 0.0)
    """
    lines, words = _lines(answer), len(tokens(answer.text))
    return float(answer.problem is None and len(lines) == 1 and 0 < words <= WORD_LIMIT)


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
    return f'read "{normalise(_read(answer))}", reference "{normalise(str(sample.reference["answer"]))}"'


def why_token_f1(sample: Sample, answer: Answer) -> str:
    """Return the words that F1 counted."""
    if sample.reference["closed"]:
        return "the question is closed"
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    found = overlap(_read(answer), str(sample.reference["answer"]))
    parts = {"shared": found.shared, "missed": found.missed, "extra": found.extra}
    return "; ".join(f"{part}: {' '.join(words) or 'nothing'}" for part, words in parts.items())


def why_format(sample: Sample, answer: Answer) -> str:
    """Return lines and words with their limits."""
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    return f"{len(_lines(answer))} lines (1 expected), {len(tokens(answer.text))} words (at most {WORD_LIMIT})"


WHY = {"exact": why_exact, "token_f1": why_token_f1, "format": why_format}
"""Reward -> explanation of its value."""


def _read(answer: Answer) -> str:
    return str(answer.values.get("text") or "")


def _lines(answer: Answer) -> list[str]:
    return [line for line in answer.text.splitlines() if line.strip()]
