"""Names of diagnoses: a table of codes, names and synonyms, and how to find a diagnosis in a text."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from toolkit.errors import DataError
from toolkit.prepare.labels import fold_diagnosis as _fold

NEGATED = "a diagnosis is named with a negation"
SEVERAL = "several diagnoses are named"
UNKNOWN = "no known diagnosis is named"
"""Reasons why a text names no diagnosis."""


@dataclass(frozen=True, slots=True)
class Label:
    """One diagnosis: its code in the data, its name in answers, and its synonyms."""

    code: str
    name: str
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelTable:
    """The diagnoses of a dataset. A name belongs to one diagnosis."""

    labels: tuple[Label, ...]

    def name(self, code: str) -> str:
        """Return the name of a code."""
        return next(label.name for label in self.labels if label.code == code)

    def find(self, text: str) -> str | None:
        """Return the code whose code, name or synonym is the whole text, ignoring case, punctuation and a plural s."""
        return _names(self).get(_fold(text))

    def read(self, text: str) -> tuple[str | None, str | None]:
        """Return the code that a text names, or the reason why there is none. A text with several diagnoses names none.

        >>> HAM10000.read("It is a melanocytic nevus (a mole)."), HAM10000.read("melanoma or nevus")
        (('nv', None), (None, 'several diagnoses are named'))
        """
        if whole := self.find(text):
            return whole, None
        folded = f" {_fold(text)} "
        if re.search(r" (not?|without|excludes?|excluding|rather than|unlike) ", folded):
            return None, NEGATED
        found = set()
        for name in sorted(_names(self), key=len, reverse=True):
            if f" {name} " in folded:
                found.add(_names(self)[name])
                folded = folded.replace(f" {name} ", " | ")
        if len(found) == 1:
            return found.pop(), None
        return None, SEVERAL if found else UNKNOWN


_KERATOSES = (
    "solar keratosis; solar or actinic keratosis; Bowen's disease; Bowen disease; intraepithelial carcinoma; "
    "actinic keratoses and intraepithelial carcinoma; actinic keratoses; AK"
)
_BENIGN_KERATOSES = (
    "benign keratosis-like lesion; benign keratoses; seborrheic keratosis; seborrhoeic keratosis; "
    "seborrheic keratoses; solar lentigo; lichen planus-like keratosis; pigmented benign keratosis"
)
_MELANOMAS = (
    "malignant melanoma; melanoma in situ; lentigo maligna; melanoma invasive; invasive melanoma; melanoma NOS; "
    "melanoma metastasis"
)
_NEVI = "nevus; naevus; melanocytic naevus; melanocytic nevi; nevi; naevi; mole; benign nevus; nevus NOS"
_VESSELS = "angioma; hemangioma; haemangioma; angiokeratoma; pyogenic granuloma; cherry angioma"

HAM10000 = LabelTable(
    tuple(
        Label(code, name, tuple(synonyms.split("; ")))
        for code, name, synonyms in (
            ("akiec", "actinic keratosis", _KERATOSES),
            ("bcc", "basal cell carcinoma", "basal cell cancer; basalioma"),
            ("bkl", "benign keratosis", _BENIGN_KERATOSES),
            ("df", "dermatofibroma", "fibrous histiocytoma"),
            ("mel", "melanoma", _MELANOMAS),
            ("nv", "melanocytic nevus", _NEVI),
            ("vasc", "vascular lesion", _VESSELS),
        )
    )
)
"""The seven classes of HAM10000 (Tschandl et al. 2018, doi:10.1038/sdata.2018.161), by code."""


def load_labels(path: Path) -> LabelTable:
    """Load a user's table: TOML with ``[[label]]`` tables of ``code``, ``name`` and optional ``synonyms``.

    Raises:
        DataError: The file is unreadable, an entry is incomplete, or one name belongs to two diagnoses.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("label", [])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        rule = "a table of labels must be a readable TOML file"
        raise DataError(
            "tasks.lesion.labels_not_readable", rule, place=path, value=str(error), remedy="Correct the file."
        ) from error
    table = LabelTable(tuple(_entry(entry, f"{path}, label {number}") for number, entry in enumerate(entries, 1)))
    if not table.labels:
        rule = "a table of labels must have at least one label"
        raise DataError("tasks.lesion.labels_empty", rule, place=path, remedy=_LAYOUT)
    taken: dict[str, str] = {}
    for label in table.labels:
        for name in _names_of(label):
            if taken.setdefault(name, label.code) != label.code:
                rule = f"a name must belong to one label, not to {taken[name]} and {label.code}"
                remedy = "Remove it from one of them."
                raise DataError("tasks.lesion.label_name_repeated", rule, place=path, value=name, remedy=remedy)
    return table


def _entry(entry: object, place: str) -> Label:
    if not isinstance(entry, dict):
        rule = "a label must be a table"
        raise DataError("tasks.lesion.label_not_table", rule, place=place, value=entry, remedy=_LAYOUT)
    code, name, synonyms = entry.get("code"), entry.get("name"), entry.get("synonyms", [])
    texts = isinstance(synonyms, list) and all(isinstance(text, str) for text in synonyms)
    if not (isinstance(code, str) and isinstance(name, str) and _fold(code) and _fold(name) and texts):
        rule = "a label must have a code and a name, and synonyms must be texts"
        raise DataError("tasks.lesion.label_incomplete", rule, place=place, value=entry, remedy=_LAYOUT)
    return Label(code, name, tuple(synonyms))


_LAYOUT = 'Write [[label]], code = "mel", name = "melanoma", synonyms = ["malignant melanoma"].'


@lru_cache(maxsize=8)
def _names(table: LabelTable) -> dict[str, str]:
    return {name: label.code for label in table.labels for name in _names_of(label)}


def _names_of(label: Label) -> Iterator[str]:
    for name in (label.code, label.name, *label.synonyms):
        yield _fold(name)
