"""Sections of a report: headings at the beginning of a line, such as ``FINDINGS:``."""

import re
from collections.abc import Mapping

ANSWERED: tuple[str, ...] = (
    "findings",
    "impression",
    "conclusion",
    "opinion",
    "diagnosis",
    "final diagnosis",
    "gross description",
    "microscopic description",
    "comment",
)
"""Headings of sections that describe the images, in lower case."""

CONTEXT: tuple[str, ...] = (
    "indication",
    "history",
    "clinical history",
    "clinical information",
    "clinical data",
    "reason for exam",
    "reason for examination",
    "comparison",
    "technique",
    "examination",
    "exam",
    "procedure",
)
"""Headings of sections that the images do not show."""

_HEADING = re.compile(
    rf"^[ \t]*({'|'.join(sorted((*ANSWERED, *CONTEXT), key=len, reverse=True))})[ \t]*:", re.IGNORECASE | re.MULTILINE
)


def split_sections(report: str) -> Mapping[str, str]:
    """Return heading, as the report writes it -> text of the section. Text before the first heading is left out.

    Sections with the same heading are joined.

    >>> split_sections("FINDINGS: Clear lungs.\\nIMPRESSION:\\nNormal.")
    {'FINDINGS': 'Clear lungs.', 'IMPRESSION': 'Normal.'}
    """
    found = list(_HEADING.finditer(report))
    starts = [*(heading.start() for heading in found), len(report)]
    sections: dict[str, str] = {}
    for heading, end in zip(found, starts[1:], strict=True):
        text = report[heading.end() : end].strip()
        sections[heading[1]] = "\n".join(part for part in (sections.get(heading[1], ""), text) if part)
    return sections


def headings(report: str) -> tuple[str, ...]:
    """Return the headings of the sections that describe the images, in order.

    >>> headings("INDICATION: Cough.\\nFINDINGS: Clear lungs.\\nImpression: Normal.")
    ('FINDINGS', 'Impression')
    """
    return tuple(name for name in split_sections(report) if name.lower() in ANSWERED)


def section(report: str, name: str) -> str:
    """Return the text of a section, in any case. Empty: the report has no such section."""
    return next((text for heading, text in split_sections(report).items() if heading.lower() == name), "")
