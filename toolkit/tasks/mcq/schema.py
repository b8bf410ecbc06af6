"""Rows of multiple choice to samples: ReXVQA's JSON, and options as lists, tables, JSON text or columns."""

import re
from collections.abc import Mapping
from typing import Any

from toolkit.data.cells import NO_ANSWER, NO_QUESTION, cell, decoded, extra_fields, text_of
from toolkit.data.row_images import read_group, read_images
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import RowProblem

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TAGS = ("<start_working_out>", "<end_working_out>", "<SOLUTION>", "</SOLUTION>")

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "question": ("question",),
    "options": ("options", "choices"),
    **{f"option_{letter.lower()}": (f"option_{letter}", f"op{letter}", letter) for letter in LETTERS[:8]},
    "answer": ("correct_answer", "answer"),
    "answer_index": ("answer_index", "answer_idx", "correct_index"),
    "explanation": ("correct_answer_explanation", "explanation", "rationale"),
    "image": ("ImagePath", "image", "images", "image_name", "img_name", "image_path"),
    "findings": ("Findings",),
    "impression": ("Impression",),
    "question_type": ("question_type", "task_name", "category"),
}

_LABEL = re.compile(r"\(?([A-Za-z])(?:\)|[.:]|\s+-)\s*(.*)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")

_NOT_AN_OPTION = ("tasks.mcq.answer_not_an_option", "the answer must be one of the options")
_LETTER_REPEATED = ("tasks.mcq.option_letter_repeated", "each option must have a letter of its own")

MAX_COLUMNS = 8
"""Maximum number of options in separate columns: option_a to option_h."""


def read(name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
    """Return the sample of one row.

    ``fields``: question, options (letter -> text), question_type if any, and the columns that the recipe names.
    ``reference``: letter, text, explanation and report (Findings and Impression). The last two may be None.

    Raises:
        RowProblem: The row is unusable.
    """
    place = f"{origin.file}: {name}"
    question = text_of(cell(row, origin, "question"))
    if not question:
        raise RowProblem(*NO_QUESTION, place=place)
    options = read_options(row, origin, place)
    letter = read_letter(row, origin, options, place)
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
    reference = {
        "letter": letter,
        "text": options[letter],
        "explanation": explanation or None,
        "report": _report(row, origin),
    }
    return Sample(name, "mcq", read_group(row, origin, images), images, fields, reference)


def read_options(row: Mapping[str, Any], origin: RowOrigin, place: str) -> dict[str, str]:
    """Return letter -> text in the order of the source, with single spaces.

    Letters come from the texts ("A. Normal") if all of them begin with one and A is among them, or from the keys of a
    table. Otherwise they are assigned in order.
    """
    value = decoded(cell(row, origin, "options"))
    if value is None:
        found = {letter: cell(row, origin, f"option_{letter.lower()}") for letter in LETTERS[:MAX_COLUMNS]}
        if any(fold(column) == f"option {LETTERS[MAX_COLUMNS].lower()}" for column in row):
            rule, remedy = "options in separate columns must be a to h", "Put all options into one column, options."
            raise RowProblem("tasks.mcq.too_many_option_columns", rule, place=place, remedy=remedy)
        value = {letter: text for letter, text in found.items() if text_of(text)}
    if not isinstance(value, list | dict):
        raise RowProblem("tasks.mcq.options_not_list", "options must be a list or a table", place=place, value=value)
    if len(value) < 2:
        rule = "the row must have at least two options"
        raise RowProblem("tasks.mcq.too_few_options", rule, place=place, value=value)
    if len(value) > len(LETTERS):
        rule = "the row must have at most 26 options"
        raise RowProblem("tasks.mcq.too_many_options", rule, place=place, value=len(value))
    options = _from_table(value, place) if isinstance(value, dict) else _from_list(value, place)
    if not all(options.values()):
        raise RowProblem("tasks.mcq.option_empty", "an option must not be empty", place=place, value=value)
    return options


def read_letter(row: Mapping[str, Any], origin: RowOrigin, options: Mapping[str, str], place: str) -> str:
    """Return the letter of the correct option.

    Accepted: a letter ("B", "B.", "(B)"), "B. text", the text of an option, or a number from 0.
    """
    answer = text_of(cell(row, origin, "answer"))
    letter = answer if answer in options else _find_letter(answer, options, place)
    if letter is None and not answer:
        letter = _at_index(text_of(cell(row, origin, "answer_index")), options, place)
    if letter is None and answer.isdecimal():
        remedy = "Name the column as answer_index in data.columns if it counts the options from 0."
        rule = "the answer must be a letter or the text of an option, not a number"
        raise RowProblem("tasks.mcq.answer_is_number", rule, place=place, value=answer, remedy=remedy)
    if letter is None:
        if not answer:
            raise RowProblem(*NO_ANSWER, place=place)
        raise RowProblem(*_NOT_AN_OPTION, place=place, value=answer)
    if len(set(options.values())) < len(options) and list(options.values()).count(options[letter]) > 1:
        rule = "the correct option must be listed once"
        raise RowProblem("tasks.mcq.correct_option_repeated", rule, place=place, value=options[letter])
    return letter


def fold(text: str) -> str:
    """Return the text in lower case without punctuation. Signs that change a meaning stay.

    >>> fold("Size: > 5 mm."), fold("-3 to +2"), fold("T-cell")
    ('size > 5 mm', '- 3 to + 2', 't cell')
    """
    return " ".join(re.findall(r"[^\W_]+|[<>≤≥=+±]|(?<!\w)[-−](?=\d)", text.casefold()))


def letter_of_text(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the only option with this text, first exactly, then without case and punctuation."""
    for normalised in (str, fold):
        expected = normalised(text)
        found = [letter for letter, option in options.items() if normalised(option) == expected]
        if expected and found:
            return found[0] if len(found) == 1 else None
    return None


def _from_table(table: Mapping[str, Any], place: str) -> dict[str, str]:
    options = {str(key).strip().upper(): _one_line(text) for key, text in table.items()}
    if not all(len(key) == 1 and key in LETTERS for key in options):
        rule = "the keys of options must be letters"
        raise RowProblem("tasks.mcq.option_key_not_letter", rule, place=place, value=list(table))
    if len(options) < len(table):
        raise RowProblem(*_LETTER_REPEATED, place=place, value=list(table))
    return options


def _from_list(texts: list[Any], place: str) -> dict[str, str]:
    options = [_one_line(text) for text in texts]
    labels = [_LABEL.fullmatch(option) for option in options]
    letters = [label[1].upper() for label in labels if label is not None]
    if len(letters) < len(options) or "A" not in letters:
        return dict(zip(LETTERS, options, strict=False))
    if len(set(letters)) < len(letters):
        raise RowProblem(*_LETTER_REPEATED, place=place, value=texts)
    return {letter: label[2] for letter, label in zip(letters, labels, strict=True) if label is not None}


def _one_line(value: Any) -> str:
    text = value if isinstance(value, str) else text_of(value)
    return " ".join(text.split())


def _find_letter(answer: str, options: Mapping[str, str], place: str) -> str | None:
    if (alone := _LETTER.fullmatch(answer)) and alone[1].upper() in options:
        return alone[1].upper()
    text = _one_line(answer)
    if (letter := letter_of_text(text, options)) is not None:
        return letter
    label = _LABEL.fullmatch(text)
    if label is None or label[1].upper() not in options:
        return None
    letter = label[1].upper()
    if fold(label[2]) != fold(options[letter]):
        rule = "the answer's letter and text must agree"
        raise RowProblem("tasks.mcq.answer_contradicts_itself", rule, place=place, value=answer)
    return letter


def _at_index(index: str, options: Mapping[str, str], place: str) -> str | None:
    if not index:
        return None
    number = index.removesuffix(".0")
    if number.isdecimal() and int(number) < len(options):
        return list(options)[int(number)]
    if (alone := _LETTER.fullmatch(index)) and alone[1].upper() in options:
        return alone[1].upper()
    raise RowProblem(*_NOT_AN_OPTION, place=place, value=index)


def _has_tag(text: str) -> bool:
    return "<" in text and any(tag.lower() in text.lower() for tag in TAGS)


def _report(row: Mapping[str, Any], origin: RowOrigin) -> str | None:
    findings, impression = text_of(cell(row, origin, "findings")), text_of(cell(row, origin, "impression"))
    return "\n".join((findings, impression)).strip() or None
