"""Rows of reports to samples: a column with the report, or one for each of findings and impression."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from toolkit.data.cells import NO_IMAGE, cell, extra_fields, text_of
from toolkit.data.groups import read_group
from toolkit.data.json_stream import Row
from toolkit.data.row_images import read_images
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import RowProblem
from toolkit.identifiers import Description, described
from toolkit.recipe import Section
from toolkit.scoring.reasoning import OPENING
from toolkit.tasks.report_generation.parse import plain
from toolkit.tasks.report_generation.sections import CONTEXT, headings, section, split_sections

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "report": ("report", "report_text", "full_report", "answer", "caption"),
    "findings": ("findings", "findings_section"),
    "impression": ("impression", "impression_section"),
    "question": ("question", "prompt"),
    "image": ("image", "images", "image_name", "image_path", "ImagePath"),
}

SECTIONS = ("findings", "impression")
"""The sections that ``target`` can choose, in the order of a report."""

NO_REPORT = ("tasks.report_generation.report_missing", "the row must have a report")
NOT_TEXT = ("tasks.report_generation.report_not_text", "a report must be a text, not a number or a truth value")
REASONING = ("tasks.report_generation.reasoning_in_report", "a report must not have a block of reasoning")
NO_SECTION = ("tasks.report_generation.section_missing", "the row must have the section that the recipe chooses")
"""Codes and rules of rows that cannot be used."""

CONTEXT_IN_REPORT = (
    "tasks.report_generation.context_in_report",
    "the reference has sections that the images do not show, such as INDICATION. Set data.report_generation.target, "
    "or remove them",
)
"""Code and rule of a warning about a row that can be used."""


class ReportGeneration(Section):
    """Settings of the task ``report_generation``: the part of the report to write."""

    target: Literal["report", "findings", "impression"] = "report"
    """Part of the report to write. ``report`` is the column of the report, otherwise findings and impression with their
    headings. ``findings`` and ``impression`` are their columns, otherwise the sections of the report."""


def read(name: str, row: Row, origin: RowOrigin) -> Sample:
    """Return the sample of one row.

    ``fields``: question (if the row has one), target, headings (those of the reference, for the instruction), and the
    columns that the recipe names. ``reference``: report, the text that the model must write.

    Raises:
        RowProblem: the report, its section, the group or the image is missing, or an image path leaves the image root.
    """
    target = origin.settings.target if origin.settings is not None else "report"
    report = _reference(row, origin, target, str(origin.file))
    images = read_images(name, row, origin)
    if not images:
        raise RowProblem(*NO_IMAGE, place=str(origin.file), value=cell(row, origin, "image"))
    fields: dict[str, Any] = {"target": target, "headings": headings(plain(report))}
    if question := text_of(cell(row, origin, "question")):
        fields["question"] = question
    fields |= {column: text for column, text in extra_fields(row, origin) if column not in fields}
    group = read_group(row, origin, images)
    return Sample(name, "report_generation", group, images, fields, {"report": report})


def placeholders(settings: Any) -> Mapping[str, Any]:
    """Return a reference with the headings that a prediction writes."""
    return {"findings": "unknown", "impression": "unknown"}


def notes(sample: Sample) -> Iterator[tuple[str, str]]:
    """Yield a warning if the reference has sections that the images do not show."""
    if any(heading.lower() in CONTEXT for heading in split_sections(sample.reference["report"])):
        yield CONTEXT_IN_REPORT


def _reference(row: Row, origin: RowOrigin, target: str, place: str) -> str:
    report, *texts = (_text(row, origin, name, place) for name in ("report", *SECTIONS))
    parts = dict(zip(SECTIONS, texts, strict=True))
    if target == "report":
        joined = "\n".join(f"{name.upper()}:\n{text}" for name, text in parts.items() if text)
        if (text := report or joined) and not _has_headings_alone(text):
            return text
        remedy = "Add it, or name its column in data.columns.report."
        raise RowProblem(*NO_REPORT, place=place, value=described(text or None), remedy=remedy)
    if text := parts[target] or section(plain(report), target):
        return text
    named = [name for name, text in parts.items() if text] + list(split_sections(plain(report)))
    found = ", ".join(named) or "no section"
    remedy = f"Name its column in data.columns.{target}, or choose another data.report_generation.target."
    raise RowProblem(*NO_SECTION, place=place, value=Description(f"{target} is missing, found {found}"), remedy=remedy)


def _has_headings_alone(report: str) -> bool:
    sections = split_sections(plain(report))
    return bool(sections) and not any(sections.values())


def _text(row: Row, origin: RowOrigin, field: str, place: str) -> str:
    value = cell(row, origin, field)
    if isinstance(value, bool | int) or (isinstance(value, float) and value == value):  # NaN is missing
        remedy = f"Name the column of the text in data.columns.{field}."
        raise RowProblem(*NOT_TEXT, place=place, value=value, remedy=remedy)
    text = text_of(value)
    if OPENING.search(text):
        remedy = 'Remove it, or set data.task = "chat" to learn it.'
        raise RowProblem(*REASONING, place=place, value=described(text), remedy=remedy)
    return text
