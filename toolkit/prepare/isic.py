"""Preparation of the ISIC archive and challenges: tables, images and masks to rows of stage 1 or stage 2."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit.data import Tally
from toolkit.errors import DataError
from toolkit.prepare.downloads import (
    REPEATED,
    DownloadedFiles,
    choose_masks,
    list_files,
    read_number,
)
from toolkit.prepare.isic_diagnoses import Classes, find_diagnoses, wider_diagnoses
from toolkit.prepare.isic_tables import Archive, expected_columns, read_archive
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

DOWNSAMPLED = "_downsampled"
"""Ending of the names of images that ISIC reduced in size."""


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
    archive = read_archive(found.tables, tally)
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
        remedy=f"Looked for: {expected_columns()}; masks NAME_segmentation.png."
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
