"""Rows of multiple choice to samples: ReXVQA's JSON and other published layouts. See ``options`` and ``answer``."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from toolkit.data.cells import NO_QUESTION, cell, extra_fields, text_of
from toolkit.data.groups import read_group
from toolkit.data.row_images import read_images
from toolkit.data.sample import Sample
from toolkit.data.sample_set import SampleSet
from toolkit.data.task import Found, RowOrigin, SettingsFromRows
from toolkit.errors import Problem, RowProblem
from toolkit.recipe import Section
from toolkit.scoring.reasoning import NOT_CLOSED, without_reasoning
from toolkit.tasks.mcq.answer import read_letter
from toolkit.tasks.mcq.options import LETTERS, MAX_COLUMNS, read_options

TAGS = ("<start_working_out>", "<end_working_out>", "<SOLUTION>", "</SOLUTION>")

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "question": ("question",),
    "options": ("options", "choices"),
    **{
        f"option_{letter.lower()}": (
            *(f"{name}{letter}" for name in ("option_", "op", "choice_")),
            letter,
            *(f"{name}{number}" for name in ("option_", "op", "choice_")),
        )
        for number, letter in enumerate(LETTERS[:MAX_COLUMNS], start=1)
    },
    "answer": ("correct_answer", "answer", "gt_answer", "label"),
    "answer_letter": ("answer_label", "answer_letter", "correct_letter"),
    "answer_index": ("answer_index", "answer_idx", "correct_index"),
    "explanation": ("correct_answer_explanation", "explanation", "rationale"),
    "image": ("ImagePath", "image", "images", "image_name", "img_name", "image_path", "Figure_path"),
    "findings": ("Findings",),
    "impression": ("Impression",),
    "question_type": ("question_type", "task_name", "category"),
}

MAX_CHECKED = 2_000
"""Training rows that are checked for an explanation."""

_CHOICES = "Answer Choices:"


class Mcq(Section):
    """Settings of the task ``mcq``: whether an answer has reasoning."""

    reasoning: Literal["auto"] | bool = "auto"
    """Request reasoning before the answer, and reward its format. ``auto`` does if the training rows have an
    explanation. Otherwise SFT would learn empty reasoning."""


def read(name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
    """Return the sample of one row.

    ``fields``: question, options (letter -> text), reasoning (False, if the answer has none), question_type if any,
    and the columns that the recipe names. ``reference``: letter, text, explanation and report (Findings and
    Impression). The last two may be None.

    Raises:
        RowProblem: The row is unusable.
    """
    place = str(origin.file)
    question = text_of(cell(row, origin, "question"))
    if not question:
        raise RowProblem(*NO_QUESTION, place=place)
    options = read_options(row, origin, place)
    letter = read_letter(row, origin, options, place)
    question = _without_options(question, options)
    explanation = text_of(cell(row, origin, "explanation"))
    if _has_tag("\n".join((explanation, *options.values()))):
        rule = "options and explanation must not have a tag of the answer's format"
        raise RowProblem("tasks.mcq.tag_in_text", rule, place=place)
    images = read_images(name, row, origin)
    fields: dict[str, Any] = {"question": question, "options": options}
    if question_type := text_of(cell(row, origin, "question_type")):
        fields["question_type"] = question_type
    if origin.context or origin.by:
        fields.update(extra_fields(row, origin))
    if not _requests_reasoning(origin):
        fields["reasoning"] = False
    reference = {
        "letter": letter,
        "text": options[letter],
        "explanation": explanation or None,
        "report": _report(row, origin),
    }
    return Sample(name, "mcq", read_group(row, origin, images), images, fields, reference)


def find_reasoning(settings: Mcq, rows: Mapping[str, Sequence[Sample]]) -> Found:
    """Return whether answers have reasoning, which the explanations of the training rows decide if it is ``auto``."""
    train = rows["train"]
    if settings.reasoning == "auto":
        # Without the column, no row has to be read.
        has_column = not isinstance(train, SampleSet) or "explanation" in train.origin.column
        reasoning = has_column and any(sample.reference["explanation"] for sample in train)
    else:
        reasoning = settings.reasoning
    return Found({"reasoning": reasoning}, tuple(_without_explanation(train)) if reasoning else ())


def _without_explanation(train: Sequence[Sample]) -> Iterator[Problem]:
    """Yield a warning if training rows lack the explanation that their answer is to have."""
    checked = min(len(train), MAX_CHECKED)
    if missing := sum(not sample.reference["explanation"] for sample in islice(train, checked)):
        rule = "training rows should have an explanation, because SFT learns empty reasoning from the others"
        value = f"{missing:,} of {checked:,} checked rows have none"
        remedy = "Add explanations, choose rows with data.filter, or set data.mcq.reasoning = false."
        yield Problem("tasks.mcq.explanation_missing", rule, "train", value, remedy)


REASONING = SettingsFromRows(find_reasoning, lambda settings, found: settings.model_copy(update=found), needed=False)
"""Whether answers have reasoning, as a setting that the training rows decide."""


def _requests_reasoning(origin: RowOrigin) -> bool:
    """Return whether an answer has reasoning. Without the training rows, the column of explanations decides."""
    setting = "auto" if origin.settings is None else origin.settings.reasoning
    return "explanation" in origin.column if setting == "auto" else bool(setting)


def _without_options(question: str, options: Mapping[str, str]) -> str:
    """Return a question without the list of its options, which MedXpertQA appends to it."""
    text, found, listed = question.rpartition(_CHOICES)
    expected = " ".join(f"({letter}) {option}" for letter, option in options.items())
    return text.strip() if found and text.strip() and " ".join(listed.split()) == expected else question


def _has_tag(text: str) -> bool:
    """Return whether a text would change how an answer with it is parsed."""
    has_own = "<" in text and any(tag.lower() in text.lower() for tag in TAGS)
    return has_own or without_reasoning(text)[1] == NOT_CLOSED


def _report(row: Mapping[str, Any], origin: RowOrigin) -> str | None:
    findings, impression = text_of(cell(row, origin, "findings")), text_of(cell(row, origin, "impression"))
    return "\n".join((findings, impression)).strip() or None
