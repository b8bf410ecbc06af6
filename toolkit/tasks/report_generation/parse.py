"""Parse a report in a completion."""

import re

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.reasoning import without_reasoning
from toolkit.tasks.report_generation.sections import headings

NO_REPORT = "there is no report"
"""Problem of a completion. An evaluation counts answers by problem."""

_FENCE = re.compile(r"\A\s*```[\w-]*\n(.*?)\n?```\s*\Z", re.DOTALL)
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")


def parse(completion: str, sample: Sample) -> Answer:
    """Return the report in ``values["text"]``, without reasoning, code fence and bold type, and its ``headings``."""
    text, problem = without_reasoning(completion)
    text = plain(text)
    if not text:
        return Answer(completion, {}, problem or NO_REPORT)
    return Answer(completion, {"text": text, "headings": list(headings(text))})


def plain(text: str) -> str:
    """Return a report without code fence and bold type.

    >>> plain("**Findings:** Clear lungs.")
    'Findings: Clear lungs.'
    """
    fenced = _FENCE.fullmatch(text)
    return _BOLD.sub(r"\1", fenced[1] if fenced else text).strip()
