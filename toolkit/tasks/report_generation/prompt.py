"""The prompt of a report: question and instruction, and the completion that SFT learns."""

from collections.abc import Mapping

from toolkit.data.sample import Sample

QUESTIONS: Mapping[str, str] = {
    "report": "Write the report of the images.",
    "findings": "Describe the findings in the images.",
    "impression": "Write the impression of the images.",
}
"""Target -> the question of rows without one."""

HEADED = "Write the sections {names}, each after its heading and a colon."
HEADED_ONE = "Write the section {names} after its heading and a colon."
FREE = "Write full sentences without headings."


def instruction(sample: Sample) -> str:
    """Return an instruction that requests the sections of the reference, never a short answer."""
    names = sample.fields["headings"]
    if not names:
        return FREE
    *others, last = names
    return HEADED.format(names=f"{', '.join(others)} and {last}") if others else HEADED_ONE.format(names=last)


def question(sample: Sample) -> str:
    """Return the question of the row, otherwise that of the target."""
    return str(sample.fields.get("question") or QUESTIONS[sample.fields["target"]])


def target(sample: Sample) -> str:
    """Return the reference unchanged."""
    return str(sample.reference["report"])
