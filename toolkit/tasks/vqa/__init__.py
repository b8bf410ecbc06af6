"""Open and closed questions with short answers, in the style of VQA-RAD and SLAKE."""

from collections.abc import Mapping

from toolkit.data.sample import Answer, Sample
from toolkit.data.task import Task
from toolkit.scoring.text import normalise
from toolkit.tasks.vqa.metrics import baseline
from toolkit.tasks.vqa.parse import parse
from toolkit.tasks.vqa.rewards import REWARDS, exact, token_f1
from toolkit.tasks.vqa.rewards import format as keeps_format
from toolkit.tasks.vqa.schema import COLUMNS, YES_NO, read

__all__ = ["VQA"]

INSTRUCTION = "Answer with one word or a short phrase; answer a yes/no question with yes or no."


def question(sample: Sample) -> str:
    """Return the question unchanged."""
    return str(sample.fields["question"])


def target(sample: Sample) -> str:
    """Return the reference answer unchanged."""
    return str(sample.reference["answer"])


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return score (exact match of closed, token F1 of open questions), both separately, and format."""
    closed, opened = exact(sample, answer), token_f1(sample, answer)
    return {
        "score": opened if closed is None else closed,
        "closed_accuracy": closed,
        "open_token_f1": opened,
        "format": keeps_format(sample, answer),
    }


def labels(sample: Sample, answer: Answer) -> tuple[str, str | None] | None:
    """Return the reference and the parsed yes or no. None unless the reference is one of them."""
    expected = normalise(str(sample.reference["answer"]))
    if not sample.reference["closed"] or expected not in YES_NO:
        return None
    read_as = normalise(str(answer.values.get("text") or ""))
    return expected, read_as if read_as in YES_NO else None


VQA = Task(
    name="vqa",
    columns=COLUMNS,
    required=frozenset({"question", "answer", "image"}),
    leaking=frozenset({*COLUMNS["answer"], "Findings", "Impression"}),
    read=read,
    instruction=lambda sample: INSTRUCTION,
    question=question,
    target=target,
    parse=parse,
    rewards=REWARDS,
    scores=scores,
    primary="score",
    labels=labels,
    baseline=baseline,
)
