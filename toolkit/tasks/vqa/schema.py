"""Rows of open and closed questions to samples: VQA-RAD, SLAKE, and any source with a question and an answer."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from toolkit.data.cells import NO_ANSWER, NO_QUESTION, cell, extra_fields, text_of, texts_of
from toolkit.data.groups import read_group
from toolkit.data.literals import decoded
from toolkit.data.row_images import read_images
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import RowProblem
from toolkit.recipe import Section
from toolkit.scoring.reasoning import OPENING
from toolkit.scoring.text import normalise
from toolkit.scoring.yes_no import yes_or_no

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "question": ("question",),
    "answer": ("answer", "correct_answer", "answers"),
    "alternatives": ("alternatives", "alternative_answers", "answer_alternatives", "accepted_answers"),
    "answer_type": ("answer_type",),
    "question_type": ("question_type", "content_type", "category"),
    "semantic_type": ("semantic_type",),
    "image": ("image_name", "img_name", "image", "images", "ImagePath", "image_path"),
}

CLOSED = frozenset({"closed", "close", "yes/no", "binary"})
OPEN = frozenset({"open", "other"})

SET_TYPES = frozenset({"verify", "choose", "query"})
"""Values of ``semantic_type`` in MIMIC-CXR-VQA (Bae et al. 2023, arXiv 2310.18652), whose lists are sets."""

# "lung#heart", as in VQA-Med 2019. "#3", "C#" and "left # femur" are texts.
_BETWEEN_TEXTS = re.compile(r"(?<=[^\W_][^\W_]|[^\W_][).])#(?=[^\W\d_][^\W_])")
# "left # femur" is uncertain, and so is "embolism|PE", as in VQA-Med 2021.
_LOOSE = re.compile(
    r"(?<=[^\W\d_][^\W\d_]) +# +(?=[^\W\d_][^\W\d_])|(?<=[^\W_][^\W_]|[^\W_][).]) *\| *(?=[^\W_][^\W_])"
)

_SEVERAL = (
    "tasks.vqa.answers_ambiguous",
    "several answers must be alternatives (any of them is correct) or parts (all of them must be named)",
)


class Vqa(Section):
    """Settings of the task ``vqa``: the meaning of several answers to one question."""

    answers: Literal["auto", "any", "all"] = "auto"
    """Meaning of a list of answers, or of ``a#b`` and ``a|b``. ``any``: each one is correct. ``all``: all of them must
    be named. ``auto`` is any for ``a#b`` (VQA-Med 2019), and all for MIMIC-CXR-VQA (column ``semantic_type``). Other
    rows with several different answers are unusable."""


def read(name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
    """Return the sample of one row.

    ``fields``: question, answer_type (``closed`` or ``open``) if the source states it, question_type if any, and the
    columns that the recipe names. ``reference``: answer (the text that SFT learns), closed (bool), answer_type, and for
    several answers either alternatives (other correct answers) or parts (answers that must all be named). Numbers are
    valid answers. True becomes yes and False becomes no.

    Raises:
        RowProblem: The question, answer, group or image is missing, an image path leaves the image root, or it is
            uncertain what several answers mean.
    """
    place = str(origin.file)
    question = text_of(cell(row, origin, "question"))
    if not question:
        raise RowProblem(*NO_QUESTION, place=place)
    reference = _read_answers(row, origin, place)
    images = read_images(name, row, origin)
    stated = _stated_type(text_of(cell(row, origin, "answer_type")))
    fields = {"question": question}
    if stated:
        fields["answer_type"] = stated
    if question_type := text_of(cell(row, origin, "question_type")):
        fields["question_type"] = question_type
    fields |= {column: text for column, text in extra_fields(row, origin) if column not in fields}
    answer_type = stated or ("closed" if yes_or_no(reference["answer"]) else "open")
    reference |= {"closed": answer_type == "closed", "answer_type": answer_type}
    return Sample(name, "vqa", read_group(row, origin, images), images, fields, reference)


def _read_answers(row: Mapping[str, Any], origin: RowOrigin, place: str) -> dict[str, Any]:
    value = cell(row, origin, "answer")
    texts = _different(texts_of(_without_truth_values(value)))
    others = texts_of(_without_truth_values(cell(row, origin, "alternatives")))
    if not texts:
        raise RowProblem(*NO_ANSWER, place=place, value=value)
    if reasoned := next((text for text in (*texts, *others) if OPENING.search(text)), None):
        rule = "an answer must not have a block of reasoning, which is never scored"
        remedy = 'Remove it, or set data.task = "chat" to learn it.'
        raise RowProblem("tasks.vqa.reasoning_in_answer", rule, place=place, value=reasoned[:80], remedy=remedy)
    meaning = _meaning(texts, row, origin, place)
    if len(texts) == 1 and meaning != "one":
        texts = _different(part for loose in _LOOSE.split(texts[0]) for part in _BETWEEN_TEXTS.split(loose))
    if meaning == "all" and len(texts) > 1:
        if others:
            rule = "a row must not have both parts of the answer and alternatives"
            remedy = "Remove the alternatives, or name another column in data.columns.alternatives."
            raise RowProblem("tasks.vqa.alternatives_of_parts", rule, place=place, value=others, remedy=remedy)
        return {"answer": ", ".join(texts), "parts": texts}
    found = _different((*texts, *others))
    return {"answer": found[0], "alternatives": found[1:]} if len(found) > 1 else {"answer": found[0]}


def _without_truth_values(value: Any) -> Any:
    """Return yes for True and no for False, also in a list. Other values stay as they are.

    >>> _without_truth_values([True, "left"]), _without_truth_values(False), _without_truth_values(0)
    (['yes', 'left'], 'no', 0)
    """
    value = decoded(value)
    if isinstance(value, list | tuple):
        return [_without_truth_values(one) if isinstance(one, bool) else one for one in value]
    return ("yes" if value else "no") if isinstance(value, bool) else value


def _meaning(texts: tuple[str, ...], row: Mapping[str, Any], origin: RowOrigin, place: str) -> str:
    """Return ``any``, ``all``, or ``one`` for a single answer."""
    wanted = origin.settings.answers if origin.settings is not None else "auto"
    if len(texts) == 1:
        if _BETWEEN_TEXTS.search(texts[0]):
            return "all" if wanted == "all" else "any"
        if not _LOOSE.search(texts[0]):
            return "one"
    elif wanted == "auto" and text_of(cell(row, origin, "semantic_type")) in SET_TYPES:
        return "all"
    if wanted == "auto":
        remedy = 'Set data.vqa.answers to "any" or "all".'
        readings = list(_readings(texts))
        raise RowProblem(*_SEVERAL, place=place, value=readings, remedy=remedy)
    return wanted


def _readings(texts: tuple[str, ...]) -> Iterator[str]:
    """Yield both readings of several answers, or of one text with a loose ``#``."""
    parts = texts if len(texts) > 1 else tuple(_LOOSE.split(texts[0]))
    yield f"any of {', '.join(parts)}"
    yield f"all of {', '.join(parts)}"
    if len(texts) == 1:
        yield f"the text {texts[0]}"


def _different(texts: Any) -> tuple[str, ...]:
    """Return the texts without repetitions that differ only in case and punctuation."""
    return tuple({normalise(text): text for text in reversed(tuple(texts))}.values())[::-1]


def _stated_type(stated: str) -> str:
    """Return the answer type of the source, or an empty text if the source does not state it."""
    known = stated.lower()
    return "closed" if known in CLOSED else "open" if known in OPEN else ""
