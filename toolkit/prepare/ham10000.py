"""Preparation of HAM10000 (Tschandl et al. 2018): metadata, images and official masks to one row per image."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from toolkit.data import Tally
from toolkit.errors import DataError
from toolkit.prepare.downloads import (
    IMAGES,
    REPEATED,
    TABLES,
    DownloadedFiles,
    Table,
    choose_masks,
    common_root,
    list_files,
    read_number,
    read_table,
    require_columns,
)
from toolkit.prepare.labels import make_labels
from toolkit.prepare.measure import Cell, ImageFiles, MaskMeasurements, PreparedImage
from toolkit.prepare.request import PrepareRequest, PrepareResult
from toolkit.prepare.write import DatasetNames, locations, measure_images, region_columns, split_and_write

NEEDED = ("lesion_id", "image_id", "dx")
CLASSES = frozenset({"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"})
NAMES = DatasetNames("ham10000_with_spatial_data", "lesion_id")


@dataclass(frozen=True, slots=True)
class Metadata:
    """One row of HAM10000_metadata. A blank cell is None, and so is an optional column that a copy lacks."""

    lesion_id: str
    image_id: str
    dx: str
    dx_type: str | None
    age: float | None
    sex: str | None
    localization: str | None
    dataset: str | None


COLUMNS = {one.name: (one.name,) for one in fields(Metadata)}
"""Column of the rows -> its names in the table."""


def prepare_ham10000(
    images: Sequence[Path], masks: Path | None, metadata: Path, request: PrepareRequest
) -> PrepareResult:
    """Write the rows of HAM10000, split by lesion. Rows with a mask get boxes, outlines and locations.

    Args:
        images: Folders with ``{image_id}.jpg``, .jpeg or .png, also nested. The first copy of an image is used.
        masks: Folder with ``{image_id}.png``, ``{image_id}_segmentation.png`` or ``{image_id}_mask.png``, also nested,
            if any. Also .jpg, .jpeg, .tif, .tiff and .bmp, and any case.
        metadata: HAM10000_metadata.csv.
        request: Output folder and options.

    Raises:
        DataError: Columns or identifiers are missing, no image exists, or images or masks are unusable.
        Interrupted: A signal requested a stop.
        RunError: A worker process ended unexpectedly.
    """
    tally = Tally()
    records = read_metadata(metadata, tally)
    found_images = list_files(images, without=[masks] if masks else [])
    image_files = _match(records, found_images, _find_masks(masks, found_images, records, tally), tally)
    if not image_files:
        folders = ", ".join(map(str, images))
        example = f"{next(iter(records), 'ISIC_0024306')}.jpg"
        rule = f"the folders must have the images of the metadata, with names like {example}"
        raise DataError("data.no_image_of_table", rule, place=folders, remedy="Correct --images.")
    _count_unknown([records[name] for name in image_files], tally)
    measured = measure_images(image_files, NAMES.file, request, tally)
    root = common_root([*images, *([masks] if masks else [])])
    prepared = [
        _prepared(records[name], files, found, root)
        for (name, files), found in zip(image_files.items(), measured, strict=True)
    ]
    labels, _ = make_labels([one.diagnosis for one in prepared], {})
    # The task knows the classes of HAM10000. A table of its labels is needed only for others.
    names = replace(NAMES, labels=labels) if {label.code for label in labels} - CLASSES else NAMES
    return split_and_write(prepared, root, names, request, tally)


def read_metadata(file: Path, tally: Tally) -> dict[str, Metadata]:
    """Return image_id -> its metadata.

    Raises:
        DataError: A required column is missing, an identifier is blank, or an image has two rows.
    """
    table = read_table(file)
    require_columns(table, {name: COLUMNS[name] for name in NEEDED})
    records: dict[str, Metadata] = {}
    for record in _records(table, tally):
        if record.image_id in records:
            rule, place, remedy = "an image must have one row", f"{file}, image_id", "Remove the others."
            raise DataError("data.image_in_two_rows", rule, place=place, value=record.image_id, remedy=remedy)
        records[record.image_id] = record
    return records


def _records(table: Table, tally: Tally) -> Iterator[Metadata]:
    for number, texts in enumerate(table.records(COLUMNS), start=2):
        for name in NEEDED:
            if not texts[name]:
                rule, place = f"every row must have a {name}", f"{table.file}, line {number:,}"
                raise DataError("data.cell_empty", rule, place=place, remedy="Add it, or remove the row.")
        yield Metadata(
            lesion_id=texts["lesion_id"],
            image_id=texts["image_id"],
            dx=texts["dx"],
            dx_type=texts.get("dx_type") or None,
            age=_age(texts.get("age", ""), texts["image_id"], tally),
            sex=texts.get("sex") or None,
            localization=texts.get("localization") or None,
            dataset=texts.get("dataset") or None,
        )


def _age(text: str, image: str, tally: Tally) -> float | None:
    age = read_number(text)
    if age is None and text.lower() not in ("", "unknown"):
        tally.add("ages that are not numbers, which are null", f"{image}: {text}", "data.cell_not_number")
    return age


def _count_unknown(records: Collection[Metadata], tally: Tally) -> None:
    """Count unknown values of the written rows. An empty column is counted once."""
    for name in COLUMNS:
        values = [getattr(record, name) for record in records]
        if all(value is None for value in values):
            tally.add(
                "columns that are missing or empty in the metadata, which are null in every row",
                name,
                "data.column_empty",
            )
            continue
        for record, value in zip(records, values, strict=True):
            if value is None:
                tally.add(f"rows without {name}, which is null", record.image_id, "data.cell_missing")
            elif value == "unknown":
                tally.add(f"rows whose {name} is unknown", record.image_id, "data.cell_unknown")


def _find_masks(
    folder: Path | None, images: DownloadedFiles, records: Mapping[str, Metadata], tally: Tally
) -> Mapping[str, Path]:
    """Return the mask of each image: every image file in the folder that is not an image itself."""
    if folder is None:
        for name in images.masks:
            rule = "images with a mask in --images, which is not read without --masks"
            tally.add(rule, name, "data.masks_not_read")
        return {}
    used, candidates = set(images.images.values()), defaultdict[str, list[Path]](list)
    found = list_files([folder])
    for file in found.seen:
        if file.suffix.lower() not in (*IMAGES, *TABLES):
            tally.add("files in the folder of masks of another type", str(file), "data.mask_type_unknown")
    for name, files in [*found.plain.items(), *found.masks.items()]:
        candidates[name] += [file for file in files if file not in used]
    return choose_masks({name: files for name, files in candidates.items() if files}, records, tally)


def _match(
    records: Mapping[str, Metadata], found: DownloadedFiles, masks: Mapping[str, Path], tally: Tally
) -> dict[str, ImageFiles]:
    """Return the files of each row of the metadata, in its order."""
    for file in found.repeated:
        if Path(file) not in masks.values():
            tally.add(REPEATED, file, "data.file_name_repeated")
    image_files = {}
    for name in records:
        image, mask = found.images.get(name), masks.get(name)
        if image is None:
            tally.add("rows without an image, which are left out", name, "data.image_of_row_missing")
        else:
            image_files[name] = ImageFiles(image, mask)
    for name in found.images:
        if name not in records:
            tally.add("images without a row, which are left out", name, "data.row_of_image_missing")
    for name in masks:
        if name not in records:
            tally.add("masks without a row, which are left out", name, "data.row_of_mask_missing")
    return image_files


def _prepared(record: Metadata, files: ImageFiles, found: MaskMeasurements, root: Path) -> PreparedImage:
    where = [f"lesion located in {location} region" for location in locations(found)]
    columns: dict[str, Cell] = {
        **asdict(record),
        **region_columns(files, found, root),
        "spatial_description": "; ".join(where) or None,
        "mask_available": files.mask is not None,
    }
    return PreparedImage(record.image_id, record.dx, record.lesion_id, files, found, columns)
