"""The group of a row, the columns that can have it, and other columns of patients that splits are compared by.

A model must not be tested on a patient that it was trained on. Only some names of columns are certain. Other names that
look like the identifier of a patient stop a run if a value would be in two splits.
"""

import hashlib
import os
import re
import unicodedata
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.cells import cell, fold, group_name
from toolkit.data.json_stream import Row
from toolkit.data.splits import NO_KEY, identifier_key
from toolkit.data.task import GROUP_FIELDS, LESION, PATIENT, STUDY, RowOrigin, Task
from toolkit.errors import RowProblem
from toolkit.identifiers import described, name_parts
from toolkit.images.ref import ImageRef

NAMES: Mapping[str, tuple[str, ...]] = {
    PATIENT: ("patient_id", "patient", "subject_id"),
    LESION: ("lesion_id",),
    STUDY: ("StudyInstanceUID", "study_id"),
}
"""Field -> names of its column, first choice first, without case, blanks and underscores."""

NO_GROUPS = "none"
"""Value of ``data.group`` for rows without patients: each is grouped by its first image."""

PATIENT_FOLDER = "patient folder"
"""Name in place of a column for the folder of a patient in the paths of images, if no column has the group."""

MAX_CHARACTERS = 64
"""Maximum length of an identifier."""

_PATIENT = re.compile(
    # A stem of Latin, Cyrillic or Greek script can have an inflection of three letters, and any stem a number word.
    r"patient|pacient|pazient|pacijent|pacjent|pasien|potila|bolnik|beteg|subject|sujet|sujeto|sujeito|soggett|"
    r"participant|partecipant|teilnehmer|deelnemer|proband|volunteer|donor|examinee|mrn|^person|^case|^caso|^pid$|^empi$|"
    r"пациент|больн|участник|ασθεν|患者|病人|病患|病例|病历|病歷|病案|住院|受试者|受检者|被験者|症例|カルテ|환자|피험자|مريض|بیمار|"
    r"מטופל|חולה|रोगी|मरीज|ผู้ป่วย"
)
"""Stems of words for a patient or a subject, in lower case without accents."""

_RECORD = re.compile(
    r".*(medical|health|clinical)record.*|.*(chart|hospital|nhs)(no|nr|num|number)|record(no|nr|num|number|id)|"
    r"(numero|num|no)dossier|.*prontuario|.*historiaclinica|.*cartellaclinica|.*benhnhan|nhc|hn|ipp|eid|ptid|subj|등록번호|"
    r"(fall|pat|pt|subj?|individual|hasta)(id|no|nr|num|nummer|number)"
)
"""Whole names of columns with medical record numbers, and short names of patients, in lower case without accents."""

_UNIT = re.compile(
    r"(study|series|accession|exam|examination|scan|visit|encounter|admission|hadm|stay|slide|wsi|specimen|biopsy|session|"
    r"video|clip|volume|lesion|nodule|polyp|tumou?r|animal|mouse)(instance)?(id|uid|uuid|key|code|hash)|"
    r".*(accessionn(o|um|umber)|barcode)"
)
"""Whole names of columns with identifiers that several images of one patient have in common."""

MAX_COUNTED = 9
"""Largest number of short values of such a column that can be counted within each patient, such as the first visit."""

FLAGS = frozenset({"0", "1"})
"""Values of a column such as ``inpatient``, whose name has no word for a number."""

_NUMBER_WORDS = (
    *("id", "ids", "no", "nr", "num", "number", "code", "key", "uid", "uuid", "index", "idx", "name", "hash", "mrn"),
    *("pseudonym", "numero", "nummer", "numer", "codigo", "codice", "kod", "identifier", "identifiant"),
    *("identificador", "号", "号码", "编号", "編號", "番号", "姓名", "氏名", "번호", "아이디", "이름", "номер", "код"),
    *("رقم", "شماره", "מספר"),
)
_NUMBER_WORD = re.compile(rf".*?({'|'.join(_NUMBER_WORDS)})\d*")
_INFLECTION = re.compile(r"[a-zа-яα-ω]{0,3}|ال")
_ATTRIBUTE = re.compile(
    r"age|ages|sex|gender|weight|height|size|bmi|history|position|orientation|race|ethnicity|birth|born|dob|date|day|"
    r"year|time|type|kind|status|stage|group|class|category|label|count|comments?|description|report|text|question|"
    r"answer|summary|info|sensitive|presentation|diagnosis|outcome|dose|alter|geschlecht|edad|idade|eta|sex[eo]|sesso|"
    r"genero|genere|peso|poids|leeftijd|geslacht|wiek|plec|возраст|пол|年龄|年齢|性别|性別"
)
_ALONE = frozenset({"person", "mrn", "pid"})
_ACCENT = re.compile("[\u0300-\u036f]")
_FOLDER = re.compile(r"(patient|subject|participant|case|sub)[-_ ]?\d+|p\d{5,}", re.IGNORECASE)
"""Names of folders of one patient, as in CheXpert (patient00001), MIMIC-CXR (p10000032) and BIDS (sub-01)."""
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
    # Within the groups of patients, the numbers of their visits can begin again.
    has_units = PATIENT not in found and LESION not in found
    folder = () if any(field in found for field in GROUP_FIELDS) else (PATIENT_FOLDER,)
    return folder + tuple(
        one
        for one in available
        if one not in taken and (fold(one) in studies or _is_about_patients(one) or (has_units and _is_unit(one)))
    )


def patient_folder(path: str) -> str:
    """Return the folder of a patient in the path of an image, or an empty text.

    >>> patient_folder("train/patient00001/study1/view1.jpg"), patient_folder("files/p10/p10000032/s5/a.jpg")
    ('patient00001', 'p10000032')
    """
    return next((part for part in path.replace(os.sep, "/").split("/")[:-1] if _FOLDER.fullmatch(part)), "")


class IdentifierBuilder:
    """Collects the keys of one column row by row, and whether its values look like identifiers."""

    def __init__(self, column: str) -> None:
        self.column = column
        self._keys = array("q")
        self._present = self._likely = 0
        # "PatientName" has identifiers of any kind. The values of "subject" and "case" can be topics and classes.
        words = [rest for word in _words(column) for rest in (word, _PATIENT.sub("", word))]
        self._is_name = fold(column) in _ALONE or any(map(_NUMBER_WORD.fullmatch, words))
        self._is_unit = not _is_about_patients(column) and _is_unit(column)
        self._counted: set[str] | None = set()  # short numbers, as long as there are few

    def add(self, value: Any) -> None:
        """Append the value of one row."""
        try:
            text = group_name(value)
        except RowProblem:
            text = ""
        self._present += bool(text)
        self._likely += self._is_likely(text)
        if text and self._counted is not None:
            self._counted.add(text)
            if len(self._counted) > MAX_COUNTED or not (text.isdecimal() and len(text) < 4):
                self._counted = None
        self._keys.append(identifier_key(text) if text else NO_KEY)

    def done(self) -> NDArray[np.int64] | None:
        """Return one key per row, ``NO_KEY`` for a missing value, or None if most values are not identifiers."""
        is_flag = self._counted is not None and not self._is_name and self._counted <= FLAGS
        is_counted = self._is_unit and self._counted is not None
        is_likely = 2 * self._likely > self._present and not (is_flag or is_counted)
        return np.frombuffer(self._keys, np.int64) if is_likely else None

    def _is_likely(self, text: str) -> bool:
        if not text or len(text) > MAX_CHARACTERS or _FRACTION.fullmatch(text):
            return False
        return self._is_name or any(map(str.isdigit, text))


def read_group(row: Row, origin: RowOrigin, images: Sequence[ImageRef], text: str = "") -> str:
    """Return the group: the recipe's column, otherwise the patient, lesion or study, otherwise the first image.

    An image is its path below the image root. A row without images is grouped by a hash of ``text``, of its question,
    or of the whole row, in this order. Rows with the same question are thus in one group, and others are not.

    Raises:
        RowProblem: The recipe's column is empty, or the value is a list or an object.
    """
    if origin.group is None:
        for field in GROUP_FIELDS:
            if field in origin.column and (group := group_name(row.get(origin.column[field]))):
                return group
        if not images:
            return f"text {_text_hash(text or _question(row, origin))}"
        return str(images[0].path).removeprefix(str(origin.image_root)).lstrip(os.sep).replace(os.sep, "/")
    if group := group_name(row.get(origin.group)):
        return group
    rule = "the row must have a value in the column of data.group"
    raise RowProblem("data.group_missing", rule, place=f"{origin.file}", value=described(row.get(origin.group)))


FREE_TEXTS = ("question", "report", "findings", "impression", "messages", "explanation", "reason", "caption")
"""Fields with free text, which can have the name of a patient. Messages never have a value of them."""


def private_parts(name: str, row: Row, origin: RowOrigin) -> frozenset[str]:
    """Return the parts of the values of a row that can name a patient. No message may have them.

    These are its id, its images and masks, its group, columns about patients, and its free texts.
    """
    columns = {column for field, column in origin.column.items() if field in ("image", "mask", *GROUP_FIELDS)}
    columns |= {*filter(None, [origin.group]), *origin.identifiers} | {
        column for column in row if is_identifying(column)
    }
    texts = (row.get(column) for field, column in origin.column.items() if field in FREE_TEXTS)
    whole = {text.casefold() for text in texts if isinstance(text, str) and text.strip()}
    return name_parts([name, *(row[column] for column in columns if column in row)]) | whole


@lru_cache(maxsize=1 << 10)
def is_identifying(column: str) -> bool:
    """Return whether a column has identifiers of patients or their studies, by its name.

    >>> is_identifying("patient_name"), is_identifying("StudyInstanceUID"), is_identifying("patient_age")
    (True, True, False)
    """
    usual = {fold(name) for names in NAMES.values() for name in names}
    return fold(column) in usual or _is_about_patients(column) or _is_unit(column)


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
    return _RECORD.fullmatch("".join(words)) is not None or any(map(_is_patient, words))


def _is_patient(word: str) -> bool:
    """Return whether a word is one for a patient, with an inflection or a number word.

    >>> _is_patient("patientennummer"), _is_patient("пациента"), _is_patient("患者番号"), _is_patient("patientenakte")
    (True, True, True, False)
    """
    rest, stems = _PATIENT.subn("", word)
    return stems > 0 and (_INFLECTION.fullmatch(rest) is not None or _NUMBER_WORD.fullmatch(rest) is not None)


def _is_unit(column: str) -> bool:
    return _UNIT.fullmatch("".join(_words(column))) is not None


def _words(column: str) -> list[str]:
    """Return the words of a name in lower case without accents. Other scripts than the Latin one have no word ends.

    >>> _words("PatientID"), _words("Código anon_patient no"), _words("患者ID")
    (['patient', 'id'], ['codigo', 'anon', 'patient', 'no'], ['患者', 'id'])
    """
    plain = unicodedata.normalize("NFC", _ACCENT.sub("", unicodedata.normalize("NFD", column)))
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+", plain)]


def _question(row: Row, origin: RowOrigin) -> str:
    value = cell(row, origin, "question")
    return " ".join(value.lower().split()) if isinstance(value, str) and value.strip() else repr(sorted(row.items()))


def _text_hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
