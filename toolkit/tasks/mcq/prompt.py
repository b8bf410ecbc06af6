"""The prompt of multiple choice: question, options and instruction, and the completion that SFT learns."""

from toolkit.data.sample import Sample

INSTRUCTION = (
    "Look at the images and choose the one right option. Write your reasoning in one or two sentences between "
    "<start_working_out> and <end_working_out>, then the letter and the text of the option between <SOLUTION> and "
    "</SOLUTION>."
)
INSTRUCTION_WITHOUT_REASONING = (
    "Look at the images and choose the one right option. Answer with its letter and its text, as in "
    '"A - text of the option", and nothing else.'
)


def instruction(sample: Sample) -> str:
    """Return the instruction, which is the same for every question of a run."""
    return INSTRUCTION if requests_reasoning(sample) else INSTRUCTION_WITHOUT_REASONING


def question(sample: Sample) -> str:
    """Return the question, then one line per option."""
    options = (f"{name}. {text}" for name, text in sample.fields["options"].items())
    return "\n".join([sample.fields["question"], *options])


def target(sample: Sample) -> str:
    """Return the reference completion. The working out is empty if the row has no explanation."""
    reference = sample.reference
    return write_completion(sample, reference["letter"], reference["text"], reference["explanation"] or "")


def requests_reasoning(sample: Sample) -> bool:
    """Return whether an answer has reasoning (``data.mcq.reasoning``)."""
    return bool(sample.fields.get("reasoning", True))


def write_completion(sample: Sample, letter: str, text: str, working_out: str) -> str:
    """Return a completion in the task's format, without working out if the sample requests none."""
    if not requests_reasoning(sample):
        return f"{letter} - {text}"
    return f"<start_working_out>\n{working_out}\n<end_working_out>\n<SOLUTION>\n{letter} - {text}\n</SOLUTION>"
