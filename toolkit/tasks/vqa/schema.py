"""Rows of open and closed questions to samples: VQA-RAD, SLAKE, and any source with a question and an answer."""

from collections.abc import Mapping
from typing import Any

from toolkit.data.cells import NO_ANSWER, NO_QUESTION, cell, extra_fields, text_of
from toolkit.data.row_images import read_group, read_images
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import RowProblem

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "question": ("question",),
    "answer": ("answer", "correct_answer"),
    "answer_type": ("answer_type",),
    "question_type": ("question_type", "content_type", "category"),
    "image": ("image_name", "img_name", "image", "images", "ImagePath", "image_path"),
}

YES_NO = ("yes", "no")
CLOSED = frozenset({"closed", "close", "yes/no", "binary"})
OPEN = frozenset({"open", "other"})


def read(name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
    """Return the sample of one row.

    ``fields``: question, answer_type (``closed`` or ``open``), question_type if any, and the columns that the recipe
    names. ``reference``: answer, and closed (bool). Numbers are valid answers. True becomes yes and False becomes no.

    Raises:
        RowProblem: The question, answer, group or image is missing, or an image path leaves the image root.
    """
    question, answer = text_of(cell(row, origin, "question")), _answer(cell(row, origin, "answer"))
    for text, code_and_rule in ((question, NO_QUESTION), (answer, NO_ANSWER)):
        if not text:
            raise RowProblem(*code_and_rule, place=f"{origin.file}: {name}")
    images = read_images(name, row, origin)
    answer_type = _answer_type(text_of(cell(row, origin, "answer_type")), answer)
    fields = {"question": question, "answer_type": answer_type}
    if question_type := text_of(cell(row, origin, "question_type")):
        fields["question_type"] = question_type
    fields |= {column: text for column, text in extra_fields(row, origin) if column not in fields}
    reference = {"answer": answer, "closed": answer_type == "closed"}
    return Sample(name, "vqa", read_group(row, origin, images), images, fields, reference)


def is_yes_or_no(answer: Any) -> bool:
    """Return whether a reference is yes or no, in any case, with or without a full stop."""
    return str(answer).strip().lower().rstrip(".") in YES_NO


def _answer(value: Any) -> str:
    return YES_NO[not value] if isinstance(value, bool) else text_of(value)


def _answer_type(stated: str, answer: str) -> str:
    """Return the answer type of the source. If it is unknown, a yes or no answer means closed."""
    if stated.lower() in CLOSED:
        return "closed"
    if stated.lower() in OPEN:
        return "open"
    return "closed" if is_yes_or_no(answer) else "open"
