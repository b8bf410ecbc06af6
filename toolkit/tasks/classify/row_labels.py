"""Labels of rows: from a label column, a list, or one-hot columns to the classes that a row has."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import regex

from toolkit.data.cells import TRUTH, is_missing, number_of, text_of
from toolkit.data.literals import decoded
from toolkit.errors import RowProblem
from toolkit.identifiers import Description, shown_cell

LABEL_MISSING = ("tasks.classify.label_missing", "the row must have a label")
UNCERTAIN = ("tasks.classify.label_uncertain", "data.classify.uncertain must say how to read an uncertain label (-1)")
BLANK = ("tasks.classify.label_blank", "data.classify.blank must say how to read a blank in a label column")
ALL_OPEN = ("tasks.classify.labels_all_open", "a row must say of at least one class whether the image has it")
"""Codes and rules of problems with the labels of a row."""

_SEPARATORS = (",", ";", "|", "/", "+", "&", " and ")
"""Texts that may join several labels in one cell."""
_ONLY_SEPARATORS = (",", ";", "|")
"""Those that join labels even if only one of them occurs alone."""

# Vowel signs of Hindi or Thai and other marks belong to their word.
_WORD = regex.compile(r"[\w\p{M}]+")


@dataclass(frozen=True, slots=True)
class RowLabels:
    """The labels of one row.

    Attributes:
        present: the classes that the row has.
        unknown: the classes of which the row does not say whether it has them.
    """

    present: tuple[str, ...]
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """How labels are read, from [data.classify].

    Attributes:
        names: label in the rows -> name of the class.
        one_hot: columns of 0 and 1, one for each class.
        separator: text between several labels in one cell.
        none: label of rows without any class, in data with several labels per row.
        uncertain: how to read -1 in a one-hot column. None: the recipe does not say.
        blank: how to read a blank in a one-hot column, likewise.
    """

    names: Mapping[str, str]
    one_hot: tuple[str, ...]
    separator: str
    none: str
    uncertain: Literal["ignore", "positive", "negative"] | None
    blank: Literal["ignore", "negative"] | None

    @property
    def is_one_hot(self) -> bool:
        """Whether the rows have a column for each class."""
        return bool(self.one_hot)


def fold(name: str) -> str:
    """Return a class name without case and punctuation.

    >>> fold("Pleural_Thickening"), fold(" no-DR. ")
    ('pleural thickening', 'no dr')
    """
    return " ".join(_WORD.findall(composed(name.replace("_", " ").casefold())))


def composed(name: str) -> str:
    """Return a name with composed letters (NFC). Folders from macOS have decomposed ones, which look the same.

    >>> composed("e\u0301te\u0301") == "\xe9t\xe9"
    True
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def read_label_cell(value: Any, reading: Reading) -> RowLabels:
    """Return the labels of a cell with one label, several labels with the separator, or a list of labels.

    Raises:
        RowProblem: there is no label, a label occurs twice, or a truth value has no name.
    """
    found = decoded(value)
    if isinstance(found, list):
        texts = [_text(one, reading) for one in found]
    else:
        texts = [text.strip() for text in _text(found, reading).split(reading.separator)]
    names = [_name(text, reading) for text in texts]
    if not any(names):
        return _no_label(value, reading)
    if "" in names:
        raise RowProblem(*LABEL_MISSING, value=value, remedy="Remove the empty label.")
    if len(set(texts)) < len(texts):
        rule = "a label must occur once in a row"
        raise RowProblem("tasks.classify.label_repeated", rule, value=value, remedy="Remove the repetition.")
    return RowLabels(tuple(dict.fromkeys(names)))  # several labels can have one name


def _no_label(value: Any, reading: Reading) -> RowLabels:
    """Return no label for a blank cell or an empty list, if the recipe says that it means no class."""
    if reading.blank == "negative":
        return RowLabels(())
    remedy = 'Set data.classify.blank = "negative" if the image has none of the classes. Otherwise correct the row.'
    raise RowProblem(*LABEL_MISSING, value=value, remedy=remedy)


def read_one_hot(row: Mapping[str, Any], reading: Reading) -> RowLabels:
    """Return the labels of a row with a column of 0 and 1 for each class, and -1 or a blank for an unknown label.

    A blank beside the label of images without any class is never unknown, because this label denies every class.

    Raises:
        RowProblem: a column is missing, a value is another one, the recipe does not say how to read an unknown one, or
            every label is unknown.
    """
    present, unknown = [], []
    is_none = {column: fold(_name(column, reading)) == fold(reading.none) for column in reading.one_hot}
    denied = any(none and _number(row.get(column)) == 1 for column, none in is_none.items())
    for column in reading.one_hot:
        if column not in row:
            rule = "a row must have every column of data.classify.one_hot"
            raise RowProblem("tasks.classify.column_missing", rule, value=column, remedy="Correct the names.")
        state = _state(column, row[column], reading)
        name = _name(column, reading)
        if state == "ignore" and not (denied and is_missing(row[column])):
            unknown.append(name)
        elif state == "positive":
            present.append(name)
    found = RowLabels(
        tuple(dict.fromkeys(present)), tuple(name for name in dict.fromkeys(unknown) if name not in present)
    )
    if not found.present and {_name(column, reading) for column, none in is_none.items() if not none} <= {*unknown}:
        remedy = 'Remove the row, or set data.classify.blank or data.classify.uncertain to another value than "ignore".'
        raise RowProblem(*ALL_OPEN, value=Description(f"{', '.join(found.unknown)} are ignored"), remedy=remedy)
    return found


def one_hot_columns(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of a row that are probably one-hot columns: every value is 1, 0, -1 or blank.

    Blanks count, because a row of CheXpert has a value for few of its classes only. Without a 0 or 1 there are none.

    >>> one_hot_columns({"Path": "a.jpg", "Edema": "", "Mass": 1.0, "Fracture": -1})
    ['Edema', 'Mass', 'Fracture']
    """
    found = [name for name, value in row.items() if name and _is_one_hot(value)]
    return found if any(_number(row[name]) in (0.0, 1.0) for name in found) else []


def _is_one_hot(value: Any) -> bool:
    return not isinstance(value, bool) and (is_missing(value) or _number(value) in (0.0, 1.0, -1.0))


def without_none(labels: RowLabels, none: str) -> RowLabels:
    """Return the labels of a row without the label that means that there is none.

    Raises:
        RowProblem: the row has another label too.
    """
    named = [name for name in labels.present if fold(name) == fold(none)]
    others = tuple(name for name in labels.present if name not in named)
    if named and others:
        rule = "a row must not have the label data.classify.none together with another one"
        remedy = "Correct the row, or set data.classify.none to another label."
        raise RowProblem("tasks.classify.labels_contradict", rule, value=list(labels.present), remedy=remedy)
    return RowLabels(others, tuple(name for name in labels.unknown if fold(name) != fold(none)))


def confusable(names: Iterable[str]) -> tuple[str, str] | None:
    """Return two class names that are equal without case and punctuation.

    >>> confusable(["normal", "mucosa", "Normal."]), confusable(["DR", "DRUSEN"])
    (('normal', 'Normal.'), None)
    """
    known: dict[str, str] = {}
    for name in names:
        if (other := known.setdefault(fold(name), name)) != name:
            return other, name
    return None


def joined_labels(names: Sequence[str]) -> tuple[str, str] | None:
    """Return a class name that may be several other classes in one cell, and the text between them.

    >>> joined_labels(["edema", "effusion", "edema, effusion"]), joined_labels(["a, b", "c"])
    (('edema, effusion', ','), None)
    >>> joined_labels(["edema", "edema;mass"])  # mass never occurs alone
    ('edema;mass', ';')
    """
    known = {fold(name) for name in names}
    for name in names:
        for separator in _SEPARATORS:
            parts = [fold(part) for part in name.split(separator)]
            enough = any if separator in _ONLY_SEPARATORS else all
            if len(parts) > 1 and enough(part in known for part in parts):
                return name, separator
    return None


def _text(value: Any, reading: Reading) -> str:
    if isinstance(value, bool):
        text = "true" if value else "false"
        if text not in reading.names:
            rule = "a truth value must have a class name"
            remedy = 'Set data.classify.names = { true = "...", false = "..." }.'
            raise RowProblem("tasks.classify.label_not_text", rule, value=value, remedy=remedy)
        return text
    return number_of(value) if isinstance(value, float) else composed(number_of(text_of(value)))


def _name(text: str, reading: Reading) -> str:
    return reading.names.get(text, text)


def _state(column: str, value: Any, reading: Reading) -> str:
    """Return "positive", "negative" or "ignore" for a value of a one-hot column."""
    if is_missing(value):
        if reading.blank is None:
            remedy = 'Set data.classify.blank to "negative" (the label is absent) or "ignore" (it is unknown).'
            raise RowProblem(*BLANK, value=Description(f"{column} is blank"), remedy=remedy)
        return reading.blank
    number = _number(TRUTH.get(value.strip(), value) if isinstance(value, str) else value)
    if number in (0.0, 1.0):
        return "positive" if number else "negative"
    if number == -1:
        if reading.uncertain is None:
            remedy = 'Set data.classify.uncertain to "ignore", "positive" or "negative".'
            raise RowProblem(*UNCERTAIN, value=Description(f"{column} is -1"), remedy=remedy)
        return reading.uncertain
    rule = "a one-hot column must be 1, 0, -1 (uncertain) or blank"
    found = Description(f"{column} is {shown_cell(value)!r}")
    raise RowProblem("tasks.classify.label_not_one_hot", rule, value=found, remedy="Correct the value.")


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
