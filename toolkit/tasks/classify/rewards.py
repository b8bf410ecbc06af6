"""Rewards for classification: exact, f1, format.

There is no reward with class weights, because ``data.sampling = "balanced"`` trains on every class equally often.
"""

from collections.abc import Mapping, Sequence

from toolkit.data.sample import Answer, Reward, Sample
from toolkit.tasks.classify.prompt import write_lines

EXAMPLE = Sample(
    id="example",
    task="classify",
    group="image-1",
    images=(),
    fields={"question": "Which tissue?", "labels": ("mucus", "debris"), "multi": False, "lenient": False},
    reference={"labels": ["mucus"], "unknown": []},
)
"""The sample of the worked examples in this file."""

SEVERAL_EXAMPLE = Sample(
    id="example with several labels",
    task="classify",
    group="image-1",
    images=(),
    fields={"question": "What?", "labels": ("edema", "effusion", "mass"), "multi": True, "lenient": False},
    reference={"labels": ["edema", "effusion"], "unknown": []},
)
"""The counterpart of ``EXAMPLE`` with several labels."""


def exact(sample: Sample, answer: Answer) -> float:
    """Return 1 if the answer has exactly the classes of the reference, and 0 otherwise. Open classes do not count.

    With several labels, the answer must have a yes or no for every other class.

    >>> exact(EXAMPLE, Answer("mucus", {"labels": ["mucus"]})), exact(EXAMPLE, Answer("debris", {"labels": ["debris"]}))
    (1.0, 0.0)
    """
    right = answer.problem is None and _named(sample, answer) == set(sample.reference["labels"])
    return float(right and not _not_answered(sample, answer))


def f1(sample: Sample, answer: Answer) -> float | None:
    """Return F1 of the named classes. None if an image has one label.

    An answer without a class is right for an image without a class.

    >>> f1(SEVERAL_EXAMPLE, Answer("edema: yes ...", {"labels": ["edema"]}))  # 1 in common of 1 and 2
    0.6666666666666666
    """
    if not sample.fields["multi"]:
        return None
    if answer.problem is not None:
        return 0.0
    named, present = _named(sample, answer), set(sample.reference["labels"])
    return 2 * len(named & present) / (len(named) + len(present)) if named or present else 1.0


def format(sample: Sample, answer: Answer) -> float:
    """Return 1 if the completion is written exactly as in SFT, and 0 otherwise.

    >>> format(EXAMPLE, Answer("mucus", {"label": "mucus"})), format(EXAMPLE, Answer("Mucus.", {"label": "mucus"}))
    (1.0, 0.0)
    """
    if answer.problem is not None or _not_answered(sample, answer):
        return 0.0
    if not sample.fields["multi"]:
        return float(answer.text.strip() == answer.values.get("label"))
    answers: Mapping[str, bool] = answer.values.get("answers", {})
    in_order = {name: answers[name] for name in sample.fields["labels"] if name in answers}
    return float(answer.text.strip() == write_lines(in_order))


REWARDS: Mapping[str, Reward] = {"exact": exact, "f1": f1, "format": format}

REWARD_WEIGHTS: Mapping[str, float] = {"exact": 1.0, "f1": 1.0, "format": 0.1}
"""Maps rewards to default weights. A reward with weight 0 is off unless the recipe sets a weight."""

ALL_OR_NOTHING = frozenset({"exact", "format"})
"""Rewards that are 0 or 1 for nearly every answer."""


def why_exact(sample: Sample, answer: Answer) -> str:
    """Return both sets of classes."""
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    if missing := _not_answered(sample, answer):
        return f"no line for {_listed(missing)}"
    return f"read {_listed(answer.values.get('labels', []))}, reference {_listed(sample.reference['labels'])}"


def why_f1(sample: Sample, answer: Answer) -> str:
    """Return the classes that F1 counted."""
    if not sample.fields["multi"]:
        return "the image has one label"
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    named, present = _named(sample, answer), set(sample.reference["labels"])
    parts = {"shared": named & present, "missed": present - named, "extra": named - present}
    return "; ".join(f"{part}: {_listed(sorted(names))}" for part, names in parts.items())


def why_format(sample: Sample, answer: Answer) -> str:
    """Return what the format requires."""
    if answer.problem is not None:
        return f"not readable: {answer.problem}"
    return "one line for each class, in order" if sample.fields["multi"] else "the name of a class and nothing else"


WHY = {"exact": why_exact, "f1": why_f1, "format": why_format}
"""Reward -> explanation of its value."""


def _named(sample: Sample, answer: Answer) -> set[str]:
    """Return the classes that an answer names, without those that the row leaves open."""
    return set(answer.values.get("labels", [])) - set(sample.reference["unknown"])


def _not_answered(sample: Sample, answer: Answer) -> list[str]:
    """Return the classes without a line, of those that the row does not leave open. The parser accepts such answers."""
    if not sample.fields["multi"]:
        return []
    decided = (name for name in sample.fields["labels"] if name not in sample.reference["unknown"])
    return [name for name in decided if name not in answer.values.get("answers", {})]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no class"
