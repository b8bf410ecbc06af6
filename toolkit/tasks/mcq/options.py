"""Options of a row: a list, a table, objects with a letter and a text, JSON or Python text of these, or columns."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import regex

from toolkit.data.cells import cell, is_missing, text_of
from toolkit.data.literals import decoded
from toolkit.data.task import RowOrigin
from toolkit.errors import RowProblem
from toolkit.scoring.text import fold_case

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

MAX_COLUMNS = 18
"""Maximum number of options in separate columns: option_a to option_r. A column option_s is read as options."""

LETTER_KEYS = ("letter", "label", "key")
TEXT_KEYS = ("content", "text", "value", "option")
"""Keys of an option that is an object, such as ``{"letter": "A", "content": "Normal"}`` in MedXpertQA."""

_LABEL = re.compile(r"[(（]?([A-Za-z])([)）]|[.:．：、]|\s+-)\s*(.*)", re.DOTALL)
_LETTER_REPEATED = ("tasks.mcq.option_letter_repeated", "each option must have a letter of its own")
_FOLDED = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*|[<>≤≥=+±]|(?<![\w\p{M}])[-−](?=\d)")


def read_options(row: Mapping[str, Any], origin: RowOrigin, place: str) -> dict[str, str]:
    """Return letter -> text in the order of the source, with single spaces.

    Letters come from the texts ("A. Normal") if it is certain that they are labels (``_are_labels``), from the keys of
    a table or object, or from the names of columns. Otherwise they are assigned in order.
    """
    value = _pairs(decoded(cell(row, origin, "options")))
    if value is None:
        value = _from_columns(row, origin)
    if isinstance(value, str):
        value = _labelled_lines(value) or value
    if not isinstance(value, list | dict):
        raise RowProblem("tasks.mcq.options_not_list", "options must be a list or a table", place=place, value=value)
    if len(value) < 2:
        rule = "the row must have at least two options"
        raise RowProblem("tasks.mcq.too_few_options", rule, place=place, value=value)
    if len(value) > len(LETTERS):
        rule = "the row must have at most 26 options"
        raise RowProblem("tasks.mcq.too_many_options", rule, place=place, value=len(value))
    answer = cell(row, origin, "answer")
    options = _from_table(value, place) if isinstance(value, dict) else _from_list(value, answer, place)
    if any(map(is_missing, options.values())):
        raise RowProblem("tasks.mcq.option_empty", "an option must not be empty", place=place, value=value)
    if "options" in origin.column and "option_a" in origin.column:
        _check_columns(options, row, origin, place)
    return options


def fold(text: str) -> str:
    """Return the text in lower case without punctuation. Signs that change a meaning stay, and so do marks of letters.

    >>> fold("Size: > 5 mm."), fold("-3 to +2"), fold("T-cell")
    ('size > 5 mm', '- 3 to + 2', 't cell')
    """
    return " ".join(_FOLDED.findall(fold_case(text)))


def letter_of_text(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the only option with this text, first exactly, then without case and punctuation."""
    for normalised in (str, fold):
        expected = normalised(text)
        found = [letter for letter, option in options.items() if normalised(option) == expected]
        if expected and found:
            return found[0] if len(found) == 1 else None
    return None


def split_label(text: str) -> tuple[str, str] | None:
    """Return the letter and the text of a labelled option, such as ("B", "Mass") for "B. Mass"."""
    label = _LABEL.fullmatch(text)
    return None if label is None else (label[1].upper(), label[3])


def one_line(value: Any) -> str:
    """Return a text or number with single spaces."""
    return " ".join((value if isinstance(value, str) else text_of(value)).split())


def _labelled_lines(text: str) -> list[str] | None:
    """Return the lines of a text if they are labelled A, B, … in order, such as "A. Normal\\nB. Mass"."""
    lines = [line for line in text.splitlines() if line.strip()]
    letters = [label[0] for line in lines if (label := split_label(line.strip())) is not None]
    return lines if len(lines) > 1 and letters == list(LETTERS[: len(lines)]) else None


def _pairs(value: Any) -> Any:
    """Return objects with a letter and a text as a table, and any other value unchanged."""
    if isinstance(value, dict):
        letters, texts = (next((value[key] for key in keys if key in value), None) for keys in (LETTER_KEYS, TEXT_KEYS))
        if isinstance(letters, list) and isinstance(texts, list) and len(letters) == len(texts) and len(value) == 2:
            return _table(letters, texts)
        # Parquet gives a table every key of its column, with None for those that a row lacks. A gap is an empty option.
        last = max((key for key, text in value.items() if text is not None), key=_place, default="")
        return {key: text for key, text in value.items() if text is not None or _place(key) < _place(last)}
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        letter_keys = (*LETTER_KEYS, *_other_letter_keys(value))
        found = [[_only(one, keys) for keys in (letter_keys, TEXT_KEYS)] for one in value]
        if all(letter is not None for letter, _ in found):
            return _table([letter for letter, _ in found], [text for _, text in found])
        if all(text is not None for _, text in found):
            return [text for _, text in found]
    return value


def _place(key: str) -> tuple[int, str]:
    """Return a key that sorts A before B, and 9 before 10."""
    return len(key), key


def _other_letter_keys(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys with a letter in every object, such as ``id``. A text of one letter is no name of an option."""
    return [
        key
        for key in options[0]
        if key not in TEXT_KEYS and all(isinstance(one.get(key), str) and len(one[key].strip()) == 1 for one in options)
    ]


def _only(option: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((option[key] for key in keys if key in option), None)


def _table(letters: list[Any], texts: list[Any]) -> Any:
    """Return a table, or pairs if a letter is repeated, which is a problem that shows them."""
    table = dict(zip(map(text_of, letters), texts, strict=True))
    if len(table) == len(letters):
        return table
    return [f"{letter}) {text}" for letter, text in zip(letters, texts, strict=True)]


def _from_columns(row: Mapping[str, Any], origin: RowOrigin) -> dict[str, Any]:
    """Return the options that are not empty of option_a, option_b, … Only the last ones may be empty or missing.

    A column whose name is only a letter is no option beside columns such as ``option_a``.
    """
    has_names = len(origin.column.get("option_a", "")) > 1
    found: dict[str, Any] = {}
    for letter in LETTERS[:MAX_COLUMNS]:
        field = f"option_{letter.lower()}"
        is_letter = has_names and len(origin.column.get(field, "")) == 1
        if not is_letter and not is_missing(value := cell(row, origin, field)):
            found[letter] = value
    missing = next((letter for letter in LETTERS if letter not in found), "")
    if len(found) > 1 and max(found) > missing:
        rule = "an option must not be empty or missing if a later one has a text"
        value = {**found, missing: None}
        remedy = f"Fill in the option {missing}, or move the later options and the answer forward."
        raise RowProblem("tasks.mcq.option_missing", rule, place=f"{origin.file}", value=value, remedy=remedy)
    _check_from_one(row, origin)
    return found


def _check_columns(options: Mapping[str, str], row: Mapping[str, Any], origin: RowOrigin, place: str) -> None:
    """Raise a RowProblem if a row has options in one column and others in separate columns."""
    if len(columns := _from_columns(row, origin)) < 2:
        return
    others = _from_table(columns, place)
    if list(map(fold, others.values())) != list(map(fold, options.values())):
        rule = f"the column {origin.column['options']} and the columns of single options must agree"
        remedy = "Remove one of them, or correct the row."
        value = [dict(options), dict(others)]
        raise RowProblem("tasks.mcq.options_contradict", rule, place=place, value=value, remedy=remedy)


def _check_from_one(row: Mapping[str, Any], origin: RowOrigin) -> None:
    """Raise a RowProblem if columns of options are numbered from 0, because the first one would be lost."""
    first = origin.column.get("option_a", "")
    if not first.endswith("1"):
        return
    zero = f"{first[:-1]}0"
    if not is_missing(row.get(zero)):
        rule = "columns of options must be numbered from 1"
        value, remedy = f"{zero} = {row[zero]}", "Name them option_a, option_b, … in data.columns."
        raise RowProblem("tasks.mcq.options_from_zero", rule, place=f"{origin.file}", value=value, remedy=remedy)


def are_numbered(row: Mapping[str, Any], origin: RowOrigin) -> bool:
    """Return whether the source numbers the options from 1, by the keys of a table or the names of columns."""
    value = _pairs(decoded(cell(row, origin, "options")))
    if value is None:
        return origin.column.get("option_a", "").endswith("1")
    return isinstance(value, dict) and _have_numbers(value)


def _have_numbers(table: Mapping[str, Any]) -> bool:
    return {text_of(key) for key in table} == {str(number) for number in range(1, len(table) + 1)}


def _from_table(table: Mapping[str, Any], place: str) -> dict[str, str]:
    if _have_numbers(table):
        numbers = sorted(table, key=lambda key: int(text_of(key)))
        table = {LETTERS[place]: table[key] for place, key in enumerate(numbers)}
    options = {text_of(key).upper(): one_line(text) for key, text in table.items()}
    if not all(len(key) == 1 and key in LETTERS for key in options):
        rule = "the keys of options must be letters, or the numbers 1, 2, … without a gap"
        remedy = "Use letters as keys, and name the letter of the answer."
        raise RowProblem("tasks.mcq.option_key_not_letter", rule, place=place, value=list(table), remedy=remedy)
    if len(options) < len(table):
        raise RowProblem(*_LETTER_REPEATED, place=place, value=list(table))
    labels = {letter: split_label(text) for letter, text in options.items()}
    if all(label is not None and label[0] == letter for letter, label in labels.items()):
        return {letter: label[1] for letter, label in labels.items() if label is not None}
    _check_labels(options, place)
    return options


def _from_list(texts: list[Any], answer: Any, place: str) -> dict[str, str]:
    options = [one_line(text) for text in texts]
    plain = dict(zip(LETTERS, options, strict=False))
    labels = [_LABEL.fullmatch(option) for option in options]
    letters = [label[1].upper() for label in labels if label is not None]
    if len(letters) < len(options) or "A" not in letters:
        _check_labels(plain, place)
        return plain
    if len(set(letters)) < len(letters):
        if isinstance(answer, str) and one_line(answer) in options:  # "A: left B: right", "A: right B: left"
            return plain
        raise RowProblem(*_LETTER_REPEATED, place=place, value=texts)
    labelled = {letter: label[3] for letter, label in zip(letters, labels, strict=True) if label is not None}
    certain = _are_labels(letters, [label[2] for label in labels if label is not None])
    if certain is None:
        rule = "options must not be readable both as labelled out of order and as texts that begin with initials"
        readings = [dict(labelled), dict(plain)]
        remedy = "Store the options as a table of letters and texts."
        raise RowProblem("tasks.mcq.options_ambiguous", rule, place=place, value=readings, remedy=remedy)
    return labelled if certain else plain


def _check_labels(options: Mapping[str, str], place: str) -> None:
    """Raise a RowProblem if only some texts begin with the letter of their own option and the sign of a label.

    One letter with a full stop can be an initial ("A. baumannii"), unless the word after it is capitalized.
    """
    labels = {letter: _LABEL.fullmatch(text) for letter, text in options.items()}
    own = {letter: label for letter, label in labels.items() if label and label[1] == letter and label[3]}
    is_initial = len(own) == 1 and all(label[2] in ".．" and not label[3][0].isupper() for label in own.values())
    if not own or is_initial or len(own) == len(options):
        return
    readings = [{**options, **{letter: label[3] for letter, label in own.items()}}, dict(options)]
    rule = "the texts of all options must have a label such as A), or none of them"
    remedy = "Remove the labels, or label all options."
    raise RowProblem("tasks.mcq.options_ambiguous", rule, place=place, value=readings, remedy=remedy)


def _are_labels(letters: Sequence[str], signs: Sequence[str]) -> bool | None:
    """Return whether texts that all begin with different letters and a sign are labelled. None: it is uncertain.

    A full stop also follows an initial ("E. coli", "A. baumannii"), and a colon or hyphen an abbreviation ("L: left").
    The letters of labels have no gap. Letters with a gap that are in order are labels, unless a full stop follows them.
    """
    expected = list(LETTERS[: len(letters)])
    if list(letters) == expected or all(sign in ")）" for sign in signs):
        return True
    if any(sign not in ".．" for sign in signs):
        return True if sorted(letters) in (expected, list(letters)) else None
    return None if sorted(letters) == expected else False
