"""Options of a row: a list, a table, objects with a letter and a text, JSON or Python text of these, or columns."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import regex

from toolkit.data.cells import cell, decoded, is_missing, text_of
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
    if not all(options.values()):
        raise RowProblem("tasks.mcq.option_empty", "an option must not be empty", place=place, value=value)
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
        # Parquet gives a table every key of its column, with None for those that a row lacks.
        return {key: text for key, text in value.items() if text is not None}
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        found = [[_only(one, keys) for keys in (LETTER_KEYS, TEXT_KEYS)] for one in value]
        if all(letter is not None for letter, _ in found):
            return _table([letter for letter, _ in found], [text for _, text in found])
        if all(text is not None for _, text in found):
            return [text for _, text in found]
    return value


def _only(option: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((option[key] for key in keys if key in option), None)


def _table(letters: list[Any], texts: list[Any]) -> Any:
    """Return a table, or pairs if a letter is repeated, which is a problem that shows them."""
    table = dict(zip(map(text_of, letters), texts, strict=True))
    if len(table) == len(letters):
        return table
    return [f"{letter}) {text}" for letter, text in zip(letters, texts, strict=True)]


def _from_columns(row: Mapping[str, Any], origin: RowOrigin) -> dict[str, Any]:
    """Return the options that are not empty of option_a, option_b, …, up to the first letter without a column."""
    found: dict[str, Any] = {}
    for letter in LETTERS[:MAX_COLUMNS]:
        field = f"option_{letter.lower()}"
        if field not in origin.column:
            break
        if not is_missing(value := cell(row, origin, field)):
            found[letter] = value
    return found


def _from_table(table: Mapping[str, Any], place: str) -> dict[str, str]:
    options = {text_of(key).upper(): one_line(text) for key, text in table.items()}
    if not all(len(key) == 1 and key in LETTERS for key in options):
        rule = "the keys of options must be letters"
        raise RowProblem("tasks.mcq.option_key_not_letter", rule, place=place, value=list(table))
    if len(options) < len(table):
        raise RowProblem(*_LETTER_REPEATED, place=place, value=list(table))
    labels = {letter: split_label(text) for letter, text in options.items()}
    if all(label is not None and label[0] == letter for letter, label in labels.items()):
        return {letter: label[1] for letter, label in labels.items() if label is not None}
    return options


def _from_list(texts: list[Any], answer: Any, place: str) -> dict[str, str]:
    options = [one_line(text) for text in texts]
    plain = dict(zip(LETTERS, options, strict=False))
    labels = [_LABEL.fullmatch(option) for option in options]
    letters = [label[1].upper() for label in labels if label is not None]
    if len(letters) < len(options) or "A" not in letters:
        return plain
    if len(set(letters)) < len(letters):
        if isinstance(answer, str) and one_line(answer) in options:  # "A: left B: right", "A: right B: left"
            return plain
        raise RowProblem(*_LETTER_REPEATED, place=place, value=texts)
    labelled = {letter: label[3] for letter, label in zip(letters, labels, strict=True) if label is not None}
    certain = _are_labels(letters, [label[2] for label in labels if label is not None])
    if certain is None:
        rule = "options must not be readable both as labelled out of order and as texts that begin with initials"
        readings = f"{_show(labelled)} or {_show(plain)}"
        remedy = "Store the options as a table of letters and texts."
        raise RowProblem("tasks.mcq.options_ambiguous", rule, place=place, value=readings, remedy=remedy)
    return labelled if certain else plain


def _are_labels(letters: Sequence[str], signs: Sequence[str]) -> bool | None:
    """Return whether texts that all begin with different letters and a sign are labelled. None: it is uncertain.

    A full stop also follows an initial ("E. coli", "A. baumannii"). The letters of labels have no gap.
    """
    if any(sign not in ".．" for sign in signs) or list(letters) == list(LETTERS[: len(letters)]):
        return True
    return None if sorted(letters) == list(LETTERS[: len(letters)]) else False


def _show(options: Mapping[str, str]) -> str:
    return ", ".join(f"{letter} = {text}" for letter, text in options.items())
