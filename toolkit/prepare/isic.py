"""Preparation of the ISIC archive and challenges: tables, images and masks to rows of stage 1 or stage 2.

Tables are recognized by their columns and joined by image name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from toolkit.data import Tally
from toolkit.errors import DataError
from toolkit.prepare.downloads import (
    IMAGES,
    REPEATED,
    DownloadedFiles,
    Table,
    choose_masks,
    list_files,
    read_number,
    read_table,
)
from toolkit.prepare.isic_diagnoses import Classes, find_diagnoses, wider_diagnoses
from toolkit.prepare.labels import make_labels
from toolkit.prepare.measure import Cell, ImageFiles, MaskMeasurements, PreparedImage
from toolkit.prepare.request import PrepareRequest, PrepareResult
from toolkit.prepare.split import join_names
from toolkit.prepare.write import DatasetNames, locations, measure_images, region_columns, split_and_write

Stage = Literal[1, 2]

STAGE_COLUMNS: Mapping[int, tuple[str, ...]] = {
    1: ("diagnosis", "location", "size", "features", "concerning_features"),
    2: ("diagnosis", "location", "bbox", "confidence"),
}
"""Columns that describe a lesion in the rows of each stage, if known."""

ANSWERS: Mapping[int, tuple[str, ...]] = {
    1: ("diagnosis", "location", "size", "features"),
    2: ("diagnosis", "location", "bbox"),
}
"""Parts of an answer in each stage, if any row has them."""

OTHERS = ("image", "mask", "width", "height", "boxes", "polygons", "area_fraction")

PEOPLE = ("lesion_id", "patient_id", "age", "sex", "site", "group")

OWNERS = ("patient_id", "lesion_id")
"""Columns that group images, widest first."""

SHOWN = 20

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

DOWNSAMPLED = "_downsampled"
"""Ending of the names of images that ISIC reduced in size."""

PAIRS = ("image_name_1", "image_name_2")
"""Columns of the 2020 challenge's list of duplicate images."""

_UNNAMED = re.compile(r"isic_\d+", re.IGNORECASE)

_MALIGNANT = {"benign": "benign", "malignant": "malignant", "0": "benign", "1": "malignant"}

Facts = tuple[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class DescribedImage:
    """An image of the requested stage, with all known facts about it. Unknown facts have no key."""

    name: str
    files: ImageFiles
    found: MaskMeasurements
    facts: Mapping[str, Cell]

    @property
    def diagnosis(self) -> str:
        """The diagnosis, or an empty text if it is unknown."""
        return str(self.facts.get("diagnosis", ""))


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


def prepare_isic(source: Path, stage: Stage, request: PrepareRequest, classes: Classes | None = None) -> PrepareResult:
    """Write the rows of all ISIC files below ``source``. A row has no key for an unknown value.

    Stage 1 has a row for each image that a table or a mask describes, stage 2 for each image with a box. ``group`` is
    the patient, otherwise the lesion, otherwise the image. Rows with one of them in common are one group.

    Args:
        source: Folder with tables, images and masks.
        stage: 1 or 2.
        request: Output folder and options.
        classes: What the diagnosis of a row is. None: a named diagnosis if any image has one, otherwise malignancy.

    Raises:
        DataError: No ISIC data is recognized, or images or masks are unusable.
        Interrupted: A signal requested a stop.
        RunError: A worker process ended unexpectedly.
    """
    if request.out.resolve() == source.resolve():
        rule, remedy = "the output folder must not be the source", "Choose another folder."
        raise DataError("data.output_is_source", rule, place="--out", value=str(request.out), remedy=remedy)
    tally = Tally()
    found = list_files([source], without=[request.out])
    archive = _read_archive(found.tables, tally)
    _require_isic(source, found, archive)
    image_files = _match(found, archive, tally)
    diagnoses = find_diagnoses({name: archive.records.get(name, {}) for name in image_files}, classes, tally)
    measured = measure_images(image_files, f"isic_stage{stage}", request, tally)
    root, described = source.resolve(), list[DescribedImage]()
    for (name, files), one in zip(image_files.items(), measured, strict=True):
        record = archive.records.get(name, {})
        facts = _facts(name, record, diagnoses.get(name), one, tally) | _regions(files, one, root)
        if _is_in_stage(name, facts, stage, tally):
            described.append(DescribedImage(name, files, one, facts))
    used = [one.diagnosis for one in described if "diagnosis" in one.facts]
    labels, label_of = make_labels(used, wider_diagnoses(archive.records.values()))
    answer = tuple(
        part for part in ANSWERS[stage] if part == "diagnosis" or any(part in one.facts for one in described)
    )
    names = DatasetNames(f"isic_stage{stage}", "group", labels, answer)
    return split_and_write(_prepared(described, stage, label_of), root, names, request, tally)


def _prepared(described: Sequence[DescribedImage], stage: Stage, label_of: Mapping[str, str]) -> list[PreparedImage]:
    """Return the images with their groups and rows. ``label_of``: diagnosis -> name of its class."""
    groups = join_names([[*(str(one.facts.get(key, "")) for key in OWNERS), one.name] for one in described])
    columns = ("image_name", *STAGE_COLUMNS[stage], *OTHERS, *PEOPLE)
    prepared = []
    for one, group in zip(described, groups, strict=True):
        known: dict[str, Cell] = {**one.facts, "group": group}
        row = {column: known[column] for column in columns if column in known}
        prepared.append(PreparedImage(one.name, label_of.get(one.diagnosis, ""), group, one.files, one.found, row))
    return prepared


def _require_isic(source: Path, found: DownloadedFiles, archive: Archive) -> None:
    known = archive.records.keys() | found.masks.keys() | found.features.keys()
    if found.images.keys() & known:
        return
    files = ", ".join(str(file.relative_to(source.resolve())) for file in found.seen[:SHOWN]) or "no file"
    more = f" and {len(found.seen) - SHOWN:,} more" if len(found.seen) > SHOWN else ""
    columns = "; ".join(f"{file.name}: {_first_line(file)}" for file in archive.unread[:SHOWN])
    raise DataError(
        "data.isic_not_recognized",
        "the folder must have images and a table or masks of the ISIC archive",
        place=source,
        value=f"{files}{more}",
        remedy=f"Looked for: {_expected_columns()}; masks NAME_segmentation.png."
        + (f" Tables of unknown kind: {columns}." if columns else "")
        + (f" The tables name {len(archive.records):,} images, and none of them exists." if archive.records else ""),
    )


def _first_line(file: Path) -> str:
    with file.open(encoding="utf-8-sig") as stream:
        return stream.readline(500).strip()


def _match(found: DownloadedFiles, archive: Archive, tally: Tally) -> dict[str, ImageFiles]:
    """Return the files of each image that a table or a mask describes. All others are counted."""
    for file in archive.unread:
        tally.add("tables of an unknown layout, which are ignored", str(file), "data.table_layout_unknown")
    for name in found.repeated:
        tally.add(REPEATED, name, "data.file_name_repeated")
    image_files = {}
    masks = choose_masks(found.masks, found.images, tally)
    for name in sorted(found.images.keys() | archive.records.keys() | masks.keys()):
        excluded = _exclusion_reason(name, found, masks, archive)
        if excluded is None:
            image_files[name] = ImageFiles(found.images[name], masks.get(name), found.features.get(name, {}))
        else:
            code, reason = excluded
            tally.add(reason, name, code)
    return image_files


def _exclusion_reason(
    name: str, found: DownloadedFiles, masks: Mapping[str, Path], archive: Archive
) -> tuple[str, str] | None:
    original = archive.duplicates.get(name, name)
    # ISIC 2019 has 2,074 images of this name, which are its only copies. Others are copies of a full-size image.
    full, described = name[: -len(DOWNSAMPLED)], archive.records.keys() | masks.keys()
    if name.lower().endswith(DOWNSAMPLED) and full in found.images and (full in described or name not in described):
        return "data.image_downsampled", "downsampled copies of an image of the source, which are left out"
    if name not in found.images:
        return "data.image_of_row_missing", "rows or masks without an image, which are left out"
    if original != name and original in found.images:
        return "data.image_duplicated", "images that the source lists as duplicates, which are left out"
    if name not in archive.records and name not in masks and name not in found.features:
        return "data.image_not_described", "images without a row and a mask, which are left out"
    return None


def _facts(
    name: str, record: Mapping[str, str], diagnosis: str | None, found: MaskMeasurements, tally: Tally
) -> dict[str, Cell]:
    """Return all known facts about an image. Unknown facts have no key."""
    facts: dict[str, Cell] = {
        "image_name": name,
        "diagnosis": diagnosis,
        "size": _spell_size(record, found),
        "age": _number("age", name, record, tally),
        "confidence": _number("confidence", name, record, tally),
        "concerning_features": _listed(record, "concerning_features"),
        "features": _join(_listed(record, "features"), found.features),
    }
    facts |= {key: record.get(key) or None for key in ("lesion_id", "patient_id", "sex", "site")}
    return {key: value for key, value in facts.items() if value is not None}


def _regions(files: ImageFiles, found: MaskMeasurements, root: Path) -> dict[str, Cell]:
    values = {"location": "; ".join(locations(found)) or None, **region_columns(files, found, root)}
    return {key: value for key, value in values.items() if value is not None}


def _is_in_stage(name: str, facts: Mapping[str, Cell], stage: Stage, tally: Tally) -> bool:
    if stage == 2 and "bbox" not in facts:
        tally.add("images without a box, which are left out of stage 2", name, "data.box_missing")
        return False
    if stage == 1 and not any(column in facts for column in STAGE_COLUMNS[1]):
        tally.add("images without any description, which are left out of stage 1", name, "data.description_missing")
        return False
    return True


def _spell_size(record: Mapping[str, str], found: MaskMeasurements) -> str | None:
    """Return the size in words: the diameter in millimetres if the source has it, and the fraction of the image."""
    diameter = read_number(record.get("diameter", ""))
    parts = [f"{diameter:g} mm long diameter"] if diameter else []
    if found.area_fraction:
        percent = f"{100 * found.area_fraction:.1f}" if found.area_fraction >= 0.0005 else "less than 0.1"
        parts.append(f"{percent} % of the image")
    return ", ".join(parts) or None


def _number(field: str, name: str, record: Mapping[str, str], tally: Tally) -> float | None:
    text = record.get(field, "")
    value = read_number(text)
    if value is None and text.lower() not in ("", "unknown"):
        tally.add(
            f"values of {field} that are not numbers, which are left out", f"{name}: {text}", "data.cell_not_number"
        )
    return value


def _listed(record: Mapping[str, str], field: str) -> list[str] | None:
    """Return the features in a cell (separated text or a JSON list), or None if it has none."""
    names = [part.strip(" []'\"") for part in re.split(r"[;,|]", record.get(field, ""))]
    return [name for name in names if name] or None


def _join(from_table: list[str] | None, from_masks: list[str] | None) -> list[str] | None:
    """Return the features of the table, then those of the masks, without repeats. None if neither has any."""
    return (
        None
        if from_table is None and from_masks is None
        else list(dict.fromkeys([*(from_table or ()), *(from_masks or ())]))
    )


def _read_archive(files: Iterable[Path], tally: Tally) -> Archive:
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


def _expected_columns() -> str:
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
