"""The prompt of multiple choice: question, options and instruction, and the completion that SFT learns."""

from toolkit.data.sample import Sample

INSTRUCTION = (
    "Look at the images and choose the one right option. Write your reasoning in one or two sentences between "
    "<start_working_out> and <end_working_out>, then the letter and the text of the option between <SOLUTION> and "
    "</SOLUTION>."
)


def instruction(sample: Sample) -> str:
    """Return the instruction, which is the same for every question."""
    return INSTRUCTION


def question(sample: Sample) -> str:
    """Return the question, then one line per option."""
    options = (f"{name}. {text}" for name, text in sample.fields["options"].items())
    return "\n".join([sample.fields["question"], *options])


def target(sample: Sample) -> str:
    """Return the reference completion. The working out is empty if the source has no explanation."""
    reference = sample.reference
    return write_completion(reference["letter"], reference["text"], reference["explanation"] or "")


def write_completion(letter: str, text: str, working_out: str) -> str:
    """Return a completion in the task's format."""
    return f"<start_working_out>\n{working_out}\n<end_working_out>\n<SOLUTION>\n{letter} - {text}\n</SOLUTION>"
