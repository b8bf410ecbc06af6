"""The letter of the correct option: a letter, the text of an option, or a position."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from toolkit.data.cells import NO_ANSWER, cell, text_of, texts_of
from toolkit.data.task import RowOrigin
from toolkit.errors import RowProblem
from toolkit.scoring.yes_no import yes_or_no
from toolkit.tasks.mcq.options import are_numbered, fold, letter_of_text, one_line, split_label

_LETTER = re.compile(r"[(（]?([A-Za-z])[)）]?[.:．：、]?")
_SEVERAL = re.compile(r"\(?[A-Z]\)?(?:(?:\s*[,;/&+]\s*|\s+and\s+)\(?[A-Z]\)?)+")

LETTER_COLUMNS = frozenset({"label", "answer label", "answer letter", "correct letter"})
"""Names of a column of answers, as ``fold`` returns them, whose single letters are never texts of options."""

_NOT_AN_OPTION = ("tasks.mcq.answer_not_an_option", "the answer must be one of the options")
_CONTRADICTS = "tasks.mcq.answer_contradicts_itself"
_REPEATED = ("tasks.mcq.correct_option_repeated", "the correct option must be listed once")


def read_letter(row: Mapping[str, Any], origin: RowOrigin, options: Mapping[str, str], place: str) -> str:
    """Return the letter of the correct option.

    Accepted in ``answer``: a letter ("B", "B.", "(B)"), "B. text", or the text of an option. ``answer_letter`` has a
    letter. It must agree with the answer. ``answer_index`` has a letter or a number from 0, and is read if there is no
    answer. A letter must agree with the answer. A number may count from 1 if there is an answer.

    Raises:
        RowProblem: There is no answer or there are several, it is no option, or it is a letter and the text of another
            option.
    """
    answer = _only_answer(cell(row, origin, "answer"), options, place)
    number = (answer or text_of(cell(row, origin, "answer_index"))).removesuffix(".0")
    if number.isdecimal() and 0 < int(number) <= len(options) and are_numbered(row, origin):
        answer = _of_number(int(number), answer, options, place)
    stated = _stated(text_of(cell(row, origin, "answer_letter")), options, place)
    if stated is None and fold(origin.column.get("answer", "")) in LETTER_COLUMNS:
        stated = _alone(answer, options)
    letter = _find_letter(answer, options, place, stated)
    if letter and fold(origin.column.get("answer", "")) in LETTER_COLUMNS:
        _check_label(letter, answer, options, place)
    if letter is None and not answer:
        letter = stated or _at_index(text_of(cell(row, origin, "answer_index")), options, place)
    letter = letter or _bool_letter(cell(row, origin, "answer"), options)
    if letter is None:
        raise _no_letter(answer, options, place)
    _check_index(letter, text_of(cell(row, origin, "answer_index")), options, place)
    if stated is not None and letter != stated:
        rule, value = "the letter and the text of the answer must agree", [stated, answer]
        raise RowProblem(_CONTRADICTS, rule, place=place, value=value)
    if len(set(options.values())) < len(options) and list(options.values()).count(options[letter]) > 1:
        raise RowProblem(*_REPEATED, place=place, value=options[letter])
    return letter


def _only_answer(value: Any, options: Mapping[str, str], place: str) -> str:
    """Return the answer as text. A list may have one answer, as in MedXpertQA."""
    texts = texts_of(value)
    named = re.findall(r"[A-Z]", texts[0]) if len(texts) == 1 and _SEVERAL.fullmatch(texts[0]) else []
    is_text = bool(texts) and letter_of_text(texts[0], options) is not None
    if len(texts) > 1 or (named and set(named) <= set(options) and not is_text):
        rule, remedy = "a question must have one correct option", "Remove questions with several correct options."
        raise RowProblem("tasks.mcq.several_answers", rule, place=place, value=value, remedy=remedy)
    return texts[0] if texts else ""


def _of_number(number: int, answer: str, options: Mapping[str, str], place: str) -> str:
    """Return the letter of the answer that is the number of an option, or no answer if only an index is the number.

    Raises:
        RowProblem: The number is also the text or the position from 0 of another option.
    """
    letter, by_text = list(options)[number - 1], letter_of_text(one_line(answer), options)
    by_index = list(options)[number] if not answer and number < len(options) else None
    if (other := by_text or by_index) is not None and other != letter:
        rule = "the answer must not be both the number of an option and the text or the position from 0 of another"
        value = {letter: options[letter], other: options[other]}
        remedy = "Store the letter or the text of the option, and name its column as answer in data.columns."
        raise RowProblem("tasks.mcq.answer_ambiguous", rule, place=place, value=value, remedy=remedy)
    return letter if answer else answer


def _stated(text: str, options: Mapping[str, str], place: str) -> str | None:
    if not text:
        return None
    if letter := _alone(text, options):
        return letter
    raise RowProblem(*_NOT_AN_OPTION, place=place, value=text)


def _alone(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of an option, if the text is only that."""
    alone = _LETTER.fullmatch(text)
    return alone[1].upper() if alone and alone[1].upper() in options else None


def _find_letter(answer: str, options: Mapping[str, str], place: str, stated: str | None) -> str | None:
    text = one_line(answer)
    by_text = letter_of_text(text, options)
    by_letter = _alone(answer, options)
    if by_letter and by_text and by_letter != by_text and stated is None:
        rule = "the answer must not be both a letter and the text of another option"
        value = {by_letter: options[by_letter], by_text: options[by_text]}
        remedy = "Name a column of letters as answer_letter, or of positions as answer_index, in data.columns."
        raise RowProblem("tasks.mcq.answer_ambiguous", rule, place=place, value=value, remedy=remedy)
    if stated in (by_letter, by_text) and stated is not None:
        return stated
    return by_letter or by_text or _labelled(text, options, place) or _number_letter(text, options)


def _labelled(text: str, options: Mapping[str, str], place: str) -> str | None:
    label = split_label(text)
    if label is None or label[0] not in options:
        return None
    letter, rest = label
    if fold(rest) != fold(options[letter]):
        rule = "the answer's letter and text must agree"
        raise RowProblem(_CONTRADICTS, rule, place=place, value=text)
    return letter


def _number_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the only option that is the same number. Tables convert 2 to 2.0."""
    numbers: dict[str, float] = {}
    for letter, option in {"": text, **options}.items():
        with suppress(ValueError):
            numbers[letter] = float(option)
    if "" not in numbers:
        return None
    found = [letter for letter in options if numbers.get(letter) == numbers[""]]
    return found[0] if len(found) == 1 else None


def _bool_letter(value: Any, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option yes for True and no for False, if the answer is a truth value of JSON."""
    if not isinstance(value, bool):
        return None
    found = [letter for letter, option in options.items() if yes_or_no(option) == ("yes" if value else "no")]
    return found[0] if len(found) == 1 else None


def _at_index(index: str, options: Mapping[str, str], place: str) -> str | None:
    if not index:
        return None
    number = index.removesuffix(".0")
    if number.isdecimal() and int(number) < len(options):
        return list(options)[int(number)]
    if letter := _alone(index, options):
        return letter
    remedy = (
        "Positions count from 0. Subtract 1 from every row if the column counts from 1." if number.isdecimal() else ""
    )
    raise RowProblem(*_NOT_AN_OPTION, place=place, value=index, remedy=remedy)


def _check_label(letter: str, label: str, options: Mapping[str, str], place: str) -> None:
    """Raise a RowProblem if the number in a column of labels is the text of an option and the position of another."""
    number = label.removesuffix(".0")
    if number.isdecimal() and int(number) < len(options) and list(options)[int(number)] != letter:
        other = list(options)[int(number)]
        value = {letter: options[letter], other: options[other]}
        rule = "the answer must not be both the text of an option and the position of another"
        remedy = "Name the column as answer_index in data.columns if it counts the options from 0, or rename it."
        raise RowProblem("tasks.mcq.answer_ambiguous", rule, place=place, value=value, remedy=remedy)


def _check_index(letter: str, index: str, options: Mapping[str, str], place: str) -> None:
    """Raise a RowProblem if the index beside an answer is another option, counted from 0 and from 1."""
    if not index:
        return
    position, number = list(options).index(letter), index.removesuffix(".0")
    if number.isdecimal() and int(number) in (position, position + 1):
        return
    if _alone(index, options) != letter:
        rule, value = "the index and the answer must agree", {"index": index, letter: options[letter]}
        raise RowProblem(_CONTRADICTS, rule, place=place, value=value)


def _no_letter(answer: str, options: Mapping[str, str], place: str) -> RowProblem:
    if not answer:
        return RowProblem(*NO_ANSWER, place=place)
    if sum(fold(option) == fold(answer) for option in options.values()) > 1:
        return RowProblem(*_REPEATED, place=place, value=answer)
    if answer.removesuffix(".0").isdecimal():
        remedy = "Name the column as answer_index in data.columns if it counts the options from 0."
        rule = "the answer must be a letter or the text of an option, not a number"
        return RowProblem("tasks.mcq.answer_is_number", rule, place=place, value=answer, remedy=remedy)
    return RowProblem(*_NOT_AN_OPTION, place=place, value=answer)
