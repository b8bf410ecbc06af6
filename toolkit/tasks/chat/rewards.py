"""Rewards for the last answer of a conversation: token_f1, exact, length.

``sample.reference`` has ``answer``. ``answer.values`` has ``text``, the parsed answer.
"""

from collections.abc import Mapping

from toolkit.data.sample import Answer, Reward, Sample
from toolkit.scoring.reasoning import without_reasoning
from toolkit.scoring.reports import length_score
from toolkit.scoring.text import exact_match, normalise, overlap, tokens
from toolkit.scoring.text import token_f1 as _token_f1

EXAMPLE = Sample(
    id="example",
    task="chat",
    group="image-1",
    images=(),
    fields={"question": "Where is it?"},
    reference={"answer": "right lower lobe"},
)
"""The sample of the worked examples in this file."""


def token_f1(sample: Sample, answer: Answer) -> float:
    """Return token F1 of the answer with the reference.

    >>> token_f1(EXAMPLE, Answer("The lower lobe", {"text": "The lower lobe"}))  # 2 in common of 2 and 3
    0.8
    """
    return _token_f1(_read(answer), _reference(sample)) if answer.problem is None else 0.0


def exact(sample: Sample, answer: Answer) -> float:
    """Return 1 if the answer has the tokens of the reference, in order, and 0 otherwise.

    >>> exact(EXAMPLE, Answer("the right lower lobe.", {"text": "the right lower lobe."}))
    1.0
    """
    return float(answer.problem is None and exact_match(_read(answer), _reference(sample)))


def length(sample: Sample, answer: Answer) -> float:
    """Return the shorter of both lengths divided by the longer, in words.

    >>> length(EXAMPLE, Answer("lower lobe right side apex there", {"text": "lower lobe right side apex there"}))
    0.5
    """
    return length_score(_read(answer), _reference(sample)) if answer.problem is None else 0.0


REWARDS: Mapping[str, Reward] = {"token_f1": token_f1, "exact": exact, "length": length}

REWARD_WEIGHTS: Mapping[str, float] = {"token_f1": 1.0, "exact": 1.0, "length": 0.1}
"""Maps rewards to default weights. A reward with weight 0 is off unless the recipe sets a weight."""

ALL_OR_NOTHING = frozenset({"exact"})
"""Rewards that are 0 or 1 for nearly every answer."""


def why_token_f1(sample: Sample, answer: Answer) -> str:
    """Return the words that F1 counted."""
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    found = overlap(_read(answer), _reference(sample))
    parts = {"shared": found.shared, "missed": found.missed, "extra": found.extra}
    return "; ".join(f"{part}: {' '.join(words) or 'nothing'}" for part, words in parts.items())


def why_exact(sample: Sample, answer: Answer) -> str:
    """Return both answers as they were compared."""
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    return f'read "{normalise(_read(answer))}", reference "{normalise(_reference(sample))}"'


def why_length(sample: Sample, answer: Answer) -> str:
    """Return both lengths."""
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    return f"{len(tokens(_read(answer)))} words, the reference has {len(tokens(_reference(sample)))}"


WHY = {"token_f1": why_token_f1, "exact": why_exact, "length": why_length}
"""Reward -> explanation of its value."""


def _read(answer: Answer) -> str:
    return str(answer.values.get("text") or "")


def _reference(sample: Sample) -> str:
    """Return the answer of the row without its reasoning, which is not in a parsed answer either."""
    answer = str(sample.reference["answer"])
    text, problem = without_reasoning(answer)
    return answer if problem else text
