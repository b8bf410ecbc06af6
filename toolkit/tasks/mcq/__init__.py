"""Multiple choice with reasoning: rows of ReXVQA, answers with working out and solution, their parser and scores."""

from collections.abc import Callable, Mapping, Sequence

from toolkit.data.sample import Answer, Sample
from toolkit.data.task import Task
from toolkit.tasks.mcq.metrics import majority
from toolkit.tasks.mcq.parse import choose, parse
from toolkit.tasks.mcq.rewards import REWARDS, explanation, letter
from toolkit.tasks.mcq.rewards import format as keeps_format
from toolkit.tasks.mcq.schema import COLUMNS, read

__all__ = ["MCQ", "choose"]

INSTRUCTION = (
    "Look at the images and choose the one right option. Write your reasoning in one or two sentences between "
    "<start_working_out> and <end_working_out>, then the letter and the text of the option between <SOLUTION> and "
    "</SOLUTION>."
)


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


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return accuracy, token_f1 of the explanation (None without a reference explanation), and format."""
    return {
        "accuracy": letter(sample, answer),
        "token_f1": explanation(sample, answer),
        "format": keeps_format(sample, answer),
    }


def labels(sample: Sample, answer: Answer) -> tuple[str, str | None]:
    """Return the reference letter and the parsed letter."""
    return sample.reference["letter"], answer.values.get("letter")


def baseline(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Return the majority baseline, which completes without an explanation."""
    choose_letter = majority(samples)

    def complete(sample: Sample) -> str:
        name = choose_letter(sample)
        return write_completion(name, sample.fields["options"][name], "")

    return complete


MCQ = Task(
    name="mcq",
    columns=COLUMNS,
    required=frozenset({"question", "options|option_a", "answer|answer_index", "image"}),
    leaking=frozenset(
        name for field in ("answer", "answer_index", "explanation", "findings", "impression") for name in COLUMNS[field]
    ),
    read=read,
    instruction=lambda sample: INSTRUCTION,
    question=question,
    target=target,
    parse=parse,
    rewards=REWARDS,
    scores=scores,
    primary="accuracy",
    labels=labels,
    baseline=baseline,
)
