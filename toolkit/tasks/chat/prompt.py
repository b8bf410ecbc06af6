"""The prompt of a conversation: the turns before the last answer, which is the completion that SFT learns.

SFT learns the earlier answers too. See ``Task.turns``.
"""

from toolkit.data.sample import Sample, Turn


def instruction(sample: Sample) -> str:
    """Return an empty instruction, because the conversation has its own."""
    return ""


def question(sample: Sample) -> str:
    """Return the last user turn."""
    return str(sample.fields["question"])


def turns(sample: Sample) -> tuple[Turn, ...]:
    """Return all turns before the last answer."""
    return tuple(sample.fields["turns"])


def target(sample: Sample) -> str:
    """Return the last answer unchanged."""
    return str(sample.reference["answer"])
