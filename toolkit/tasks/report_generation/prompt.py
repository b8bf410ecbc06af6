"""The prompt of a report: question and instruction, and the completion that SFT learns."""

from collections.abc import Mapping

from toolkit.data.sample import Sample

QUESTIONS: Mapping[str, str] = {
    "report": "Write the report of the images.",
    "findings": "Describe the findings in the images.",
    "impression": "Write the impression of the images.",
}
"""Target -> the question of rows without one."""

HEADED = "Write the {sections}, each after its heading and a colon."
FREE = "Write full sentences without headings."


def instruction(sample: Sample) -> str:
    """Return an instruction that requests the sections of the reference, never a short answer."""
    names = sample.fields["headings"]
    if not names:
        return FREE
    *others, last = names
    listed = f"sections {', '.join(others)} and {last}" if others else f"section {last}"
    return HEADED.format(sections=listed)


def question(sample: Sample) -> str:
    """Return the question of the row, otherwise that of the target."""
    return str(sample.fields.get("question") or QUESTIONS[sample.fields["target"]])


def target(sample: Sample) -> str:
    """Return the reference unchanged."""
    return str(sample.reference["report"])
