"""Columns that identify patients: the group if the recipe names no column, and columns that splits are compared by.

A model must not be tested on a patient that it was trained on. Only some names of columns are certain. Other names that
look like the identifier of a patient stop a run if a value would be in two splits.
"""

import re
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.cells import fold, group_name
from toolkit.data.splits import NO_KEY, identifier_key
from toolkit.data.task import LESION, PATIENT, STUDY, Task
from toolkit.errors import RowProblem

NAMES: Mapping[str, tuple[str, ...]] = {
    PATIENT: ("patient_id", "patient", "subject_id"),
    LESION: ("lesion_id",),
    STUDY: ("StudyInstanceUID", "study_id"),
}
"""Field -> names of its column, first choice first, without case, blanks and underscores."""

NO_GROUPS = "none"
"""Value of ``data.group`` for rows without patients: each is grouped by its first image."""

MAX_CHARACTERS = 64
"""Maximum length of an identifier."""

_PATIENT = re.compile(r"patient|subject|participant|donor|mrn|^person|^case|^pid$|^empi$")
_NUMBER_WORD = re.compile(r"(id|ids|no|nr|num|number|code|key|uid|uuid|index|idx|name|hash|mrn|pseudonym)\d*")
_ATTRIBUTE = re.compile(
    r"age|ages|sex|gender|weight|height|size|bmi|history|position|orientation|race|ethnicity|birth|born|dob|date|day|"
    r"year|time|type|kind|status|stage|group|class|category|label|count|comments?|description|report|text|question|"
    r"answer|summary|info|sensitive|presentation|diagnosis|outcome|dose"
)
_ALONE = frozenset({"person", "mrn", "pid"})
_FRACTION = re.compile(r"-?\d*\.\d+")


def group_columns(task: Task, group: str | None, found: Mapping[str, str], available: Sequence[str]) -> dict[str, str]:
    """Return the columns of the group as ``GROUP_FIELDS`` -> column: those of patient and lesion, or of the study.

    A field of the task whose usual names are those of a group is used as well, so that ``data.columns`` can map it.
    """
    if group is not None:
        return {}
    columns = {field: column for field, names in NAMES.items() if (column := _column(task, names, found, available))}
    if PATIENT in columns or LESION in columns:
        columns.pop(STUDY, None)
    return columns


def identifier_columns(
    task: Task, group: str | None, found: Mapping[str, str], available: Sequence[str]
) -> tuple[str, ...]:
    """Return other columns that can identify patients or their studies. The names of a task's fields do not.

    If the recipe names the group, only a column whose name is certainly that of a patient is compared.
    """
    if group is not None:
        names = {fold(name) for name in NAMES[PATIENT]}
        return tuple(one for one in available if fold(one) in names and one not in (group, *found.values()))
    taken = set(found.values())
    studies = {fold(name) for name in NAMES[STUDY]}
    return tuple(one for one in available if one not in taken and (fold(one) in studies or _is_about_patients(one)))


class IdentifierBuilder:
    """Collects the keys of one column row by row, and whether its values look like identifiers."""

    def __init__(self, column: str) -> None:
        self.column = column
        self._keys = array("q")
        self._present = self._likely = 0
        # "PatientName" has identifiers of any kind. The values of "subject" and "case" can be topics and classes.
        words = [_PATIENT.sub("", word) for word in _words(column)]
        self._is_name = fold(column) in _ALONE or any(_NUMBER_WORD.fullmatch(word) for word in words)

    def add(self, value: Any) -> None:
        """Append the value of one row."""
        try:
            text = group_name(value)
        except RowProblem:
            text = ""
        self._present += bool(text)
        self._likely += self._is_likely(text)
        self._keys.append(identifier_key(text) if text else NO_KEY)

    def done(self) -> NDArray[np.int64] | None:
        """Return one key per row, ``NO_KEY`` for a missing value, or None if most values are not identifiers."""
        return np.frombuffer(self._keys, np.int64) if 2 * self._likely > self._present else None

    def _is_likely(self, text: str) -> bool:
        if not text or len(text) > MAX_CHARACTERS or _FRACTION.fullmatch(text):
            return False
        return self._is_name or any(map(str.isdigit, text))


def _column(task: Task, names: Sequence[str], found: Mapping[str, str], available: Sequence[str]) -> str | None:
    folded = {fold(name) for name in names}
    fields = [field for field, usual in task.columns.items() if folded & {fold(name) for name in usual}]
    for field in fields:
        if field in found:
            return found[field]
    taken = {column for field, column in found.items() if field not in fields}
    free = {fold(column): column for column in reversed(available) if column not in taken}
    return next((free[fold(name)] for name in names if fold(name) in free), None)


def _is_about_patients(column: str) -> bool:
    words = _words(column)
    if any(_ATTRIBUTE.fullmatch(_PATIENT.sub("", word)) for word in words):
        return False
    return any(_PATIENT.search(word) for word in words)


def _words(column: str) -> list[str]:
    """Return the words of a name in lower case.

    >>> _words("PatientID"), _words("anon_patient no")
    (['patient', 'id'], ['anon', 'patient', 'no'])
    """
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", column)]
