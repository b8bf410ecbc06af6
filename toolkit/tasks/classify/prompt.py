"""The prompt of classification: question, classes and instruction, and the completion that SFT learns.

With one label per image, the answer is the name of the class. With several labels, it has one line for each class in
the order of the prompt, such as ``Edema: no``. The names of the present classes alone would be shorter, but then the
probability of one class would be a sum over all sets of the others. At its own line, the probability of a class is that
of its ``yes`` against its ``no``.
"""

from collections.abc import Mapping, Sequence

from toolkit.data.sample import Sample
from toolkit.data.task import Decision

ONE = "Answer with the name of one class."
SEVERAL = "Write one line for each class: its name, a colon, and yes or no."


def instruction(sample: Sample) -> str:
    """Return the instruction for one or for several labels."""
    return SEVERAL if sample.fields["multi"] else ONE


def question(sample: Sample) -> str:
    """Return the question and the classes, one on each line."""
    return "\n".join([sample.fields["question"], *(f"- {name}" for name in sample.fields["labels"])])


def target(sample: Sample) -> str:
    """Return the name of the class, or one line for each class that the row does not leave open.

    Before the classes are known, or whether images can have several of them, it is the labels of the row, so that rows
    with the same image can be compared.
    """
    present = sample.reference["labels"]
    if not sample.fields["labels"] or (len(present) != 1 and not sample.fields["multi"]):
        return ", ".join(sorted(present)) or "no class"
    if not sample.fields["multi"]:
        return str(present[0])
    unknown = sample.reference["unknown"]
    return write_lines({name: name in present for name in sample.fields["labels"] if name not in unknown})


def write_lines(answers: Mapping[str, bool]) -> str:
    """Return an answer with several labels.

    >>> write_lines({"edema": False, "effusion": True})
    'edema: no\\neffusion: yes'
    """
    return "\n".join(f"{name}: {'yes' if present else 'no'}" for name, present in answers.items())


def choices(sample: Sample) -> Sequence[Decision]:
    """Return the decisions of an answer: one between all classes, or one between yes and no for each class."""
    labels = sample.fields["labels"]
    if not sample.fields["multi"]:
        return (Decision({name: name for name in labels}, ends=True),)
    starts = ["" if number == 0 else "\n" for number in range(len(labels))]
    return tuple(
        Decision({name: f"{start}{name}: yes", "": f"{start}{name}: no"}, ends=False)
        for name, start in zip(labels, starts, strict=True)
    )


def truth(sample: Sample) -> Mapping[str, bool]:
    """Return class -> whether the image has it, without the classes that the row leaves open."""
    present, unknown = sample.reference["labels"], sample.reference["unknown"]
    return {name: name in present for name in sample.fields["labels"] if name not in unknown}
