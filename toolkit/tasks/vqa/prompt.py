"""The prompt of open and closed questions: question and instruction, and the completion that SFT learns."""

from toolkit.data.sample import Sample

INSTRUCTION = "Answer with one word or a short phrase; answer a yes/no question with yes or no."


def instruction(sample: Sample) -> str:
    """Return the instruction, which is the same for every question."""
    return INSTRUCTION


def question(sample: Sample) -> str:
    """Return the question unchanged."""
    return str(sample.fields["question"])


def target(sample: Sample) -> str:
    """Return the reference answer unchanged."""
    return str(sample.reference["answer"])
