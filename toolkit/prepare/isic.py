"""Preparation of the ISIC archive and challenges: tables, images and masks to rows of stage 1 or stage 2."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from toolkit.data import Tally
from toolkit.errors import DataError
from toolkit.prepare.files import DownloadedFiles, list_files
from toolkit.prepare.finalize import DatasetNames, locations, measure_images, region_columns, split_and_write
from toolkit.prepare.isic_tables import Archive, diagnosis_of, expected_columns, read_archive
from toolkit.prepare.measure import ImageFiles, MaskMeasurements
from toolkit.prepare.request import PrepareRequest, PrepareResult
from toolkit.prepare.sheet import Layout
from toolkit.prepare.stratify import join_names
from toolkit.prepare.tables import read_number

Stage = Literal[1, 2]

STAGE_COLUMNS: Mapping[int, tuple[str, ...]] = {
    1: ("diagnosis", "location", "size", "features", "concerning_features"),
    2: ("diagnosis", "location", "bbox", "confidence"),
}
"""Columns that describe a lesion in the rows of each stage, if known."""

OTHERS = ("image", "mask", "width", "height", "boxes", "polygons", "area_share")
PEOPLE = ("lesion_id", "patient_id", "age", "sex", "site", "group")

SHOWN = 20


def prepare_isic(source: Path, stage: Stage, request: PrepareRequest) -> PrepareResult:
    """Write the rows of all ISIC files below ``source``. A row has no key for an unknown value.

    Stage 1 has a row for each image that a table or a mask describes, stage 2 for each image with a box. ``group`` is
    the patient, otherwise the lesion, otherwise the image. Rows that share one of them are one group.

    Raises:
        DataError: No ISIC data is recognised, or images or masks are unusable.
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
    measured = measure_images(image_files, request, tally)
    root, rows = source.resolve(), []
    for (name, files), one in zip(image_files.items(), measured, strict=True):
        facts = _facts(name, archive.records.get(name, {}), files, one, tally) | _regions(files, one, root)
        if _is_in_stage(name, facts, stage, tally):
            rows.append(facts)
    keys = join_names([[row.get("patient_id", ""), row.get("lesion_id", ""), row["image_name"]] for row in rows])
    columns = ("image_name", *STAGE_COLUMNS[stage], *OTHERS, *PEOPLE)
    for row, key in zip(rows, keys, strict=True):
        row["group"] = key
    chosen = [{column: row[column] for column in columns if column in row} for row in rows]
    return split_and_write(
        chosen, root, DatasetNames(f"isic_stage{stage}", "group", Layout("diagnosis", "image_name")), request, tally
    )


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
        tally.add("tables of an unknown layout, which are ignored", str(file))
    for name in found.repeated:
        tally.add("file names that occur twice, where the first file is used", name)
    image_files = {}
    for name in sorted(found.images.keys() | archive.records.keys() | found.masks.keys()):
        reason = _exclusion_reason(name, found, archive)
        if reason is None:
            image_files[name] = ImageFiles(found.images[name], found.masks.get(name), found.features.get(name, {}))
        else:
            tally.add(reason, name)
    return image_files


def _exclusion_reason(name: str, found: DownloadedFiles, archive: Archive) -> str | None:
    original = archive.duplicates.get(name, name)
    if name.lower().endswith("_downsampled"):
        return "downsampled copies, which are left out"
    if name not in found.images:
        return "rows or masks without an image, which are left out"
    if original != name and original in found.images:
        return "images that the source lists as duplicates, which are left out"
    if name not in archive.records and name not in found.masks and name not in found.features:
        return "images without a row and a mask, which are left out"
    return None


def _facts(
    name: str, record: Mapping[str, str], files: ImageFiles, found: MaskMeasurements, tally: Tally
) -> dict[str, Any]:
    """Return all known facts about an image. Unknown facts have no key."""
    facts: dict[str, Any] = {
        "image_name": name,
        "diagnosis": diagnosis_of(record),
        "size": _spell_size(record, found),
        "age": _number("age", name, record, tally),
        "confidence": _number("confidence", name, record, tally),
        "concerning_features": _listed(record, "concerning_features"),
        "features": _join(_listed(record, "features"), found.features),
    }
    facts |= {key: record.get(key) or None for key in ("lesion_id", "patient_id", "sex", "site")}
    if facts["diagnosis"] is None:
        tally.add("images without a diagnosis", name)
    return {key: value for key, value in facts.items() if value is not None}


def _regions(files: ImageFiles, found: MaskMeasurements, root: Path) -> dict[str, Any]:
    values = {"location": "; ".join(locations(found)) or None, **region_columns(files, found, root)}
    return {key: value for key, value in values.items() if value is not None}


def _is_in_stage(name: str, facts: Mapping[str, Any], stage: Stage, tally: Tally) -> bool:
    if stage == 2 and "bbox" not in facts:
        tally.add("images without a box, which are left out of stage 2", name)
        return False
    if stage == 1 and not any(column in facts for column in STAGE_COLUMNS[1]):
        tally.add("images without any description, which are left out of stage 1", name)
        return False
    return True


def _spell_size(record: Mapping[str, str], found: MaskMeasurements) -> str | None:
    """Return the size in words: the diameter in millimetres if the source has it, and the fraction of the image."""
    diameter = read_number(record.get("diameter", ""))
    parts = [f"{diameter:g} mm long diameter"] if diameter else []
    if found.area_fraction:
        percent = f"{100 * found.area_fraction:.1f}" if found.area_fraction >= 0.0005 else "less than 0.1"
        parts.append(f"{percent} % of the picture")
    return ", ".join(parts) or None


def _number(field: str, name: str, record: Mapping[str, str], tally: Tally) -> float | None:
    text = record.get(field, "")
    value = read_number(text)
    if value is None and text.lower() not in ("", "unknown"):
        tally.add(f"values of {field} that are not numbers, which are left out", f"{name}: {text}")
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
