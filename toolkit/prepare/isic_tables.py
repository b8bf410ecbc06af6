"""Tables of the ISIC archive and challenges, recognized by their columns and joined by image name."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.data import Tally
from toolkit.prepare.downloads import IMAGES, Table, read_number, read_table

NAME = ("isic_id", "image_name", "image_id", "bcn_filename", "image", "name")
"""Columns with the image name. The first one that exists is used."""

FIELDS: Mapping[str, tuple[str, ...]] = {
    "diagnosis": ("diagnosis", "dx"),
    **{f"diagnosis_{level}": (f"diagnosis_{level}", f"iddx_{level}") for level in range(5, 0, -1)},
    "benign_malignant": ("benign_malignant", "target"),
    "lesion_id": ("lesion_id",),
    "patient_id": ("patient_id",),
    "age": ("age_approx", "age_approximate", "age"),
    "sex": ("sex", "gender"),
    "site": ("anatom_site_general", "anatom_site_general_challenge", "localization"),
    "diameter": ("clin_size_long_diam_mm",),
    "features": ("features", "dermoscopic_features"),
    "concerning_features": ("concerning_features",),
    "confidence": ("confidence", "diagnosis_confidence"),
}
"""Field -> its columns in the archive (2016 to today), in the challenges of 2017 to 2024, and in BCN20000."""

CLASSES: Mapping[str, str] = {
    "MEL": "melanoma",
    "NV": "melanocytic nevus",
    "BCC": "basal cell carcinoma",
    "AKIEC": "actinic keratosis",
    "AK": "actinic keratosis",
    "BKL": "benign keratosis-like lesion",
    "DF": "dermatofibroma",
    "VASC": "vascular lesion",
    "SCC": "squamous cell carcinoma",
    "UNK": "",
}
"""One-hot columns of 2018 and 2019 -> class name. UNK means none of the other classes."""

CLASSES_2017: Mapping[str, str] = {"melanoma": "melanoma", "seborrheic_keratosis": "seborrheic keratosis"}

NEITHER_2017 = "nevus"
"""The 2017 challenge has three diagnoses and columns for two of them."""

PAIRS = ("image_name_1", "image_name_2")
"""Columns of the 2020 challenge's list of duplicate images."""

_UNNAMED = re.compile(r"isic_\d+", re.IGNORECASE)

_MALIGNANT = {"benign": "benign", "malignant": "malignant", "0": "benign", "1": "malignant"}

Facts = tuple[str, dict[str, str]]


@dataclass(slots=True)
class Archive:
    """Joined tables: image name -> field -> non-blank text."""

    records: dict[str, dict[str, str]] = field(default_factory=dict)
    duplicates: dict[str, str] = field(default_factory=dict)
    """Image name -> the image that it duplicates."""
    unread: list[Path] = field(default_factory=list)
    """Tables of an unknown layout."""

    def add(self, name: str, facts: Mapping[str, str], tally: Tally) -> None:
        """Add the facts of one row to those of its image. If two rows differ, the first value is kept."""
        record = self.records.setdefault(name, {})
        for key, text in facts.items():
            if text and _differ(record.setdefault(key, text), text):
                tally.add(
                    "values that differ between two rows, where the first is used",
                    f"{name}: {key}",
                    "data.cells_differ",
                )


def read_archive(files: Iterable[Path], tally: Tally) -> Archive:
    """Return the tables among these files, joined by image name.

    Raises:
        DataError: A table is unreadable.
    """
    archive = Archive()
    for file in files:
        table = read_table(file)
        if _lists_duplicates(table):
            _note_duplicates(table, archive)
            continue
        rows = _recognize(table, tally)
        if rows is None:
            archive.unread.append(file)
        for name, facts in rows or ():
            archive.add(name, facts, tally)
    return archive


def expected_columns() -> str:
    """Return a sentence with all columns by which a table is recognized."""
    fields = ", ".join(name for names in FIELDS.values() for name in names)
    classes = ", ".join([*CLASSES_2017, *CLASSES])
    return (
        f"a column {' or '.join(NAME)}, and beside it some of {fields}; or one-hot columns out of {classes}; "
        "or two columns without a header: ISIC_…, benign or malignant (0.0 or 1.0)"
    )


def _recognize(table: Table, tally: Tally) -> Iterator[Facts] | None:
    """Return the rows as (image name, facts), or None if the layout is unknown."""
    if len(table.header) == 2 and _UNNAMED.fullmatch(table.header[0]) and _malignancy(table.header[1]):
        return _pairs_of_2016(table)
    if table.column(NAME) is None:
        return None
    fields = {name: columns for name, columns in FIELDS.items() if table.column(columns) is not None}
    one_hot = {name: spelled for name, spelled in CLASSES.items() if table.column((name,)) is not None}
    if has_2017 := all(table.column((name,)) is not None for name in CLASSES_2017):
        one_hot = dict(CLASSES_2017)
    if _has_probabilities(table, one_hot):
        reason = "tables of probabilities such as those of a submission, which are no ground truth and are ignored"
        tally.add(reason, str(table.file), "data.table_of_probabilities")
        return iter(())
    if has_2017:
        return _named(table, fields, CLASSES_2017, tally)
    if len(one_hot) < 2 and not fields:
        return None
    return _named(table, fields, one_hot if len(one_hot) > 1 else {}, tally)


def _has_probabilities(table: Table, one_hot: Mapping[str, str]) -> bool:
    """Return whether a mark of a class or of malignancy is a number other than 0 and 1."""
    columns = {name: (name,) for name in (*(one_hot if len(one_hot) > 1 else ()), "target")}
    marks = (read_number(text) for texts in table.records(columns) for text in texts.values())
    return any(mark not in (None, 0, 1) for mark in marks)


def _pairs_of_2016(table: Table) -> Iterator[Facts]:
    for name, text in (table.header, *table.rows):
        yield _stem(name), {"benign_malignant": _malignancy(text)}


def _named(
    table: Table, fields: Mapping[str, Sequence[str]], one_hot: Mapping[str, str], tally: Tally
) -> Iterator[Facts]:
    columns = {"name": NAME, **fields, **{f"is {name}": (name,) for name in one_hot}}
    for texts in table.records(columns):
        if not (name := _stem(texts.pop("name"))):
            tally.add("rows without an image name, which are left out", str(table.file), "data.image_name_missing")
            continue
        marks = {column: texts.pop(f"is {column}") for column in one_hot}
        if one_hot:
            texts["class"] = _one_hot(name, marks, one_hot, tally)
        if given := texts.get("benign_malignant"):
            texts["benign_malignant"] = _malignancy(given) or given
        yield name, texts


def _one_hot(name: str, marks: Mapping[str, str], one_hot: Mapping[str, str], tally: Tally) -> str:
    """Return the marked class. No or several marks give an empty text and are counted."""
    chosen = [column for column, mark in marks.items() if (read_number(mark) or 0) > 0.5]
    if len(chosen) == 1:
        return one_hot[chosen[0]]
    if not chosen and one_hot is CLASSES_2017 and all(marks.values()):
        return NEITHER_2017
    tally.add("ground truth without exactly one marked class, which gives no diagnosis", name, "data.class_not_unique")
    return ""


def _malignancy(text: str) -> str:
    number = read_number(text)
    key = text.lower() if number is None else f"{number:g}"
    return _MALIGNANT.get(key, "")


def _lists_duplicates(table: Table) -> bool:
    return all(table.column((name,)) is not None for name in PAIRS)


def _note_duplicates(table: Table, archive: Archive) -> None:
    for pair in table.records({name: (name,) for name in PAIRS}):
        first, second = (_stem(pair[name]) for name in PAIRS)
        # Follow the duplicates to the last one, so that one of three equal images is kept
        # even if the list is cyclic.
        first = archive.duplicates.get(first, first)
        if first != second:
            archive.duplicates[second] = first


def _differ(one: str, other: str) -> bool:
    numbers = read_number(one), read_number(other)
    return numbers[0] != numbers[1] if None not in numbers else one.lower() != other.lower()


def _stem(name: str) -> str:
    """Return an image name without its file suffix."""
    for ending in IMAGES:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name
