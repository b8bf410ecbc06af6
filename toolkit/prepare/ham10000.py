"""HAM10000: its metadata, pictures and official masks as one row a picture (Tschandl et al. 2018)."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.data import Tally
from toolkit.errors import DataError
from toolkit.prepare.files import Catalogue, catalogue, common_root
from toolkit.prepare.finish import Names, finish, measure_images, places, spatial
from toolkit.prepare.masks import Job, MaskMeasurements
from toolkit.prepare.request import Prepared, Request
from toolkit.prepare.sheet import Layout
from toolkit.prepare.tables import Table, read_number, read_table, require_columns

NEEDED: Mapping[str, tuple[str, ...]] = {name: (name,) for name in ("lesion_id", "image_id", "dx")}
KNOWN: Mapping[str, tuple[str, ...]] = {
    name: (name,) for name in ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset")
}
"""The columns of HAM10000_metadata; those that are not needed are null where a copy lacks them."""

NAMES = Names("ham10000_with_spatial_data", "lesion_id", Layout("dx", "image_id"))


def prepare_ham10000(images: Sequence[Path], masks: Path | None, metadata: Path, request: Request) -> Prepared:
    """Write the rows of HAM10000, with boxes, outlines and places where a mask is there, split by lesion.

    Args:
        images: folders with ``{image_id}.jpg``, .jpeg or .png, also nested; of one picture in two the first counts.
        masks: folder with ``{image_id}_segmentation.png`` or ``{image_id}.png``, also nested; None: no masks.
        metadata: HAM10000_metadata.csv.
        request: where to and how.

    Raises:
        DataError: columns or identifiers are missing, no picture is there, or pictures and masks that cannot be used.
        Interrupted: a signal asked to stop; the same call goes on.
        RunError: a worker process ended.
    """
    tally = Tally()
    records = read_metadata(metadata, tally)
    pictures = catalogue(images, without=[masks] if masks else [])
    jobs = _match(records, pictures, _find_masks(masks, tally), tally)
    if not jobs:
        folders = ", ".join(map(str, images))
        example = f"{next(iter(records), 'ISIC_0024306')}.jpg"
        rule = f"the folders must have the images of the metadata, with names like {example}"
        raise DataError("data.no_image_of_table", rule, place=folders, remedy="Correct --images.")
    _count_unknown([records[name] for name in jobs], tally)
    found = measure_images(list(jobs), list(jobs.values()), request, tally)
    root = common_root([*images, *([masks] if masks else [])])
    rows = [_row(records[name], job, one, root) for (name, job), one in zip(jobs.items(), found, strict=True)]
    return finish(rows, root, NAMES, request, tally)


def read_metadata(file: Path, tally: Tally) -> dict[str, dict[str, Any]]:
    """image_id -> its row of the metadata with the columns of ``KNOWN``; what is blank is None.

    Raises:
        DataError: a needed column is missing, identifiers are blank, or a picture has two rows.
    """
    table = read_table(file)
    require_columns(table, NEEDED)
    records: dict[str, dict[str, Any]] = {}
    for record in _records(table, tally):
        if record["image_id"] in records:
            rule, place, remedy = "an image must have one row", f"{file}, image_id", "Remove the others."
            raise DataError("data.image_in_two_rows", rule, place=place, value=record["image_id"], remedy=remedy)
        records[record["image_id"]] = record
    return records


def _records(table: Table, tally: Tally) -> Iterator[dict[str, Any]]:
    for number, texts in enumerate(table.records(KNOWN), start=2):
        for name in NEEDED:
            if not texts[name]:
                rule, place = f"every row must have a {name}", f"{table.file}, line {number:,}"
                raise DataError("data.cell_empty", rule, place=place, remedy="Add it, or remove the row.")
        yield {name: _value(name, texts, tally) for name in KNOWN}


def _value(name: str, texts: Mapping[str, str], tally: Tally) -> str | float | None:
    text = texts.get(name) or None
    if name != "age" or text is None:
        return text
    age = read_number(text)
    if age is None and text.lower() != "unknown":
        tally.add("rows whose age is no number: null", f"{texts['image_id']}: {text}")
    return age


def _count_unknown(records: Collection[Mapping[str, Any]], tally: Tally) -> None:
    """Count what the written rows do not know; a column in which nothing stands is counted as one."""
    for name in KNOWN:
        values = [record[name] for record in records]
        if all(value is None for value in values):
            tally.add("columns that the metadata lack or leave blank: null in every row", name)
            continue
        for record, value in zip(records, values, strict=True):
            if value is None:
                tally.add(f"rows without {name}: null", record["image_id"])
            elif value == "unknown":
                tally.add(f"rows whose {name} is unknown", record["image_id"])


def _find_masks(folder: Path | None, tally: Tally) -> Mapping[str, Path]:
    if folder is None:
        return {}
    found = catalogue([folder])
    _count_repeated(found, tally)
    plain = {name: file for name, file in found.pictures.items() if file.suffix.lower() == ".png"}
    return plain | found.masks


def _match(
    records: Mapping[str, Mapping[str, Any]], pictures: Catalogue, masks: Mapping[str, Path], tally: Tally
) -> dict[str, Job]:
    """Picture and mask of each row of the metadata, in the metadata's order."""
    _count_repeated(pictures, tally)
    jobs = {}
    for name in records:
        image, mask = pictures.pictures.get(name), masks.get(name)
        if image is None:
            tally.add("rows without a picture: left out", name)
        else:
            jobs[name] = Job(image, mask if mask != image else None)
    for name in pictures.pictures:
        if name not in records:
            tally.add("pictures without a row: left out", name)
    for name in masks:
        if name not in records:
            tally.add("masks without a row: left out", name)
    return jobs


def _count_repeated(found: Catalogue, tally: Tally) -> None:
    for name in found.repeated:
        tally.add("files whose name stands in two places: the first is used", name)


def _row(record: Mapping[str, Any], job: Job, found: MaskMeasurements, root: Path) -> dict[str, Any]:
    where = [f"lesion located in {place} region" for place in places(found)]
    return {
        **record,
        **spatial(job, found, root),
        "spatial_description": "; ".join(where) or None,
        "mask_available": job.mask is not None,
    }
