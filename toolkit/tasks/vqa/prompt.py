"""The prompt of open and closed questions: question and instruction, and the completion that SFT learns."""

from collections.abc import Iterator

from toolkit.data.sample import Sample
from toolkit.scoring.text import tokens
from toolkit.tasks.vqa.rewards import WORD_LIMIT

INSTRUCTION = "Answer with one word or a short phrase; answer a yes/no question with yes or no."

LONG_ANSWER = (
    "tasks.vqa.answer_long",
    f"the answer has more than {WORD_LIMIT} words, but the instruction requests a short answer and the reward format "
    'is 0. If most answers are as long, set data.task = "report_generation"',
)
"""Code and rule of a warning about a row that can be used."""


def notes(sample: Sample) -> Iterator[tuple[str, str]]:
    """Yield a warning about an answer that is longer than the task allows."""
    answer = target(sample)
    if len(answer) > 2 * WORD_LIMIT and len(tokens(answer)) > WORD_LIMIT:
        yield LONG_ANSWER


def instruction(sample: Sample) -> str:
    """Return the instruction, which is the same for every question."""
    return INSTRUCTION


def question(sample: Sample) -> str:
    """Return the question unchanged."""
    return str(sample.fields["question"])


def target(sample: Sample) -> str:
    """Return the reference answer unchanged."""
    return str(sample.reference["answer"])
