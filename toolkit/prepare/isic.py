"""ISIC's archive and challenges: any of their tables, pictures and masks as rows of stage 1 or stage 2."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from toolkit.data import Tally
from toolkit.errors import DataError
from toolkit.prepare.files import Catalogue, catalogue
from toolkit.prepare.finish import Names, finish, measure_images, places, spatial
from toolkit.prepare.isic_tables import Archive, diagnosis_of, looked_for, read_archive
from toolkit.prepare.masks import Job, MaskMeasurements
from toolkit.prepare.request import Prepared, Request
from toolkit.prepare.sheet import Layout
from toolkit.prepare.stratify import join_names
from toolkit.prepare.tables import read_number

Stage = Literal[1, 2]

STAGE_COLUMNS: Mapping[int, tuple[str, ...]] = {
    1: ("diagnosis", "location", "size", "features", "concerning_features"),
    2: ("diagnosis", "location", "bbox", "confidence"),
}
"""What the rows of a stage say about a lesion, where it is known."""

OTHERS = ("image", "mask", "width", "height", "boxes", "polygons", "area_share")
PEOPLE = ("lesion_id", "patient_id", "age", "sex", "site", "group")

SHOWN = 20


def prepare_isic(source: Path, stage: Stage, request: Request) -> Prepared:
    """Write the rows of everything of ISIC's that lies below ``source``; what no table and no mask says is left out.

    Stage 1 has a row for each picture that a table or a mask says something about, stage 2 for each with a box.
    ``group`` is the patient, else the lesion, else the picture; rows that share one of them are one group.

    Raises:
        DataError: nothing of ISIC's is recognised, or pictures and masks that cannot be used.
        Interrupted: a signal asked to stop; the same call goes on.
        RunError: a worker process ended.
    """
    if request.out.resolve() == source.resolve():
        rule, remedy = "the output folder must not be the source", "Choose another folder."
        raise DataError("data.output_is_source", rule, place="--out", value=str(request.out), remedy=remedy)
    tally = Tally()
    found = catalogue([source], without=[request.out])
    archive = read_archive(found.tables, tally)
    _stop_at_nothing(source, found, archive)
    jobs = _match(found, archive, tally)
    measured = measure_images(list(jobs), list(jobs.values()), request, tally)
    root, rows = source.resolve(), []
    for (name, job), one in zip(jobs.items(), measured, strict=True):
        facts = _facts(name, archive.records.get(name, {}), job, one, tally) | _where(job, one, root)
        if _belongs(name, facts, stage, tally):
            rows.append(facts)
    keys = join_names([[row.get("patient_id", ""), row.get("lesion_id", ""), row["image_name"]] for row in rows])
    columns = ("image_name", *STAGE_COLUMNS[stage], *OTHERS, *PEOPLE)
    for row, key in zip(rows, keys, strict=True):
        row["group"] = key
    chosen = [{column: row[column] for column in columns if column in row} for row in rows]
    return finish(chosen, root, Names(f"isic_stage{stage}", "group", Layout("diagnosis", "image_name")), request, tally)


def _stop_at_nothing(source: Path, found: Catalogue, archive: Archive) -> None:
    known = archive.records.keys() | found.masks.keys() | found.features.keys()
    if found.pictures.keys() & known:
        return
    files = ", ".join(str(file.relative_to(source.resolve())) for file in found.seen[:SHOWN]) or "no file"
    more = f" and {len(found.seen) - SHOWN:,} more" if len(found.seen) > SHOWN else ""
    columns = "; ".join(f"{file.name}: {_first_line(file)}" for file in archive.unread[:SHOWN])
    raise DataError(
        "data.isic_not_recognized",
        "the folder must have images and a table or masks of the ISIC archive",
        place=source,
        value=f"{files}{more}",
        remedy=f"Looked for: {looked_for()}; masks NAME_segmentation.png."
        + (f" Tables of unknown kind: {columns}." if columns else "")
        + (f" The tables name {len(archive.records):,} images, and none of them exists." if archive.records else ""),
    )


def _first_line(file: Path) -> str:
    with file.open(encoding="utf-8-sig") as stream:
        return stream.readline(500).strip()


def _match(found: Catalogue, archive: Archive, tally: Tally) -> dict[str, Job]:
    """The pictures that a table or a mask is about, with their masks; all others are counted."""
    for file in archive.unread:
        tally.add("tables that are of no known kind: not read", str(file))
    for name in found.repeated:
        tally.add("files whose name stands in two places: the first is used", name)
    jobs = {}
    for name in sorted(found.pictures.keys() | archive.records.keys() | found.masks.keys()):
        reason = _reason_against(name, found, archive)
        if reason is None:
            jobs[name] = Job(found.pictures[name], found.masks.get(name), found.features.get(name, {}))
        else:
            tally.add(reason, name)
    return jobs


def _reason_against(name: str, found: Catalogue, archive: Archive) -> str | None:
    original = archive.duplicates.get(name, name)
    if name.lower().endswith("_downsampled"):
        return "downsampled copies: left out"
    if name not in found.pictures:
        return "rows or masks without a picture: left out"
    if original != name and original in found.pictures:
        return "pictures that the source lists as duplicates of others: left out"
    if name not in archive.records and name not in found.masks and name not in found.features:
        return "pictures without a row and a mask: left out"
    return None


def _facts(name: str, record: Mapping[str, str], job: Job, found: MaskMeasurements, tally: Tally) -> dict[str, Any]:
    """Everything known about a picture; what is not known has no key."""
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
        tally.add("without a diagnosis", name)
    return {key: value for key, value in facts.items() if value is not None}


def _where(job: Job, found: MaskMeasurements, root: Path) -> dict[str, Any]:
    where = {"location": "; ".join(places(found)) or None, **spatial(job, found, root)}
    return {key: value for key, value in where.items() if value is not None}


def _belongs(name: str, facts: Mapping[str, Any], stage: Stage, tally: Tally) -> bool:
    if stage == 2 and "bbox" not in facts:
        tally.add("without a box: left out of stage 2", name)
        return False
    if stage == 1 and not any(column in facts for column in STAGE_COLUMNS[1]):
        tally.add("about which nothing is said: left out of stage 1", name)
        return False
    return True


def _spell_size(record: Mapping[str, str], found: MaskMeasurements) -> str | None:
    """The share of the picture, from the mask; millimetres only where the source measured them."""
    diameter = read_number(record.get("diameter", ""))
    parts = [f"{diameter:g} mm long diameter"] if diameter else []
    if found.area_share:
        share = f"{100 * found.area_share:.1f}" if found.area_share >= 0.0005 else "less than 0.1"
        parts.append(f"{share} % of the picture")
    return ", ".join(parts) or None


def _number(field: str, name: str, record: Mapping[str, str], tally: Tally) -> float | None:
    text = record.get(field, "")
    value = read_number(text)
    if value is None and text.lower() not in ("", "unknown"):
        tally.add(f"{field} is no number: left out", f"{name}: {text}")
    return value


def _listed(record: Mapping[str, str], field: str) -> list[str] | None:
    """The features that a cell lists, also as a JSON list; None where it lists none."""
    names = [part.strip(" []'\"") for part in re.split(r"[;,|]", record.get(field, ""))]
    return [name for name in names if name] or None


def _join(named: list[str] | None, seen: list[str] | None) -> list[str] | None:
    """Those of the table, then those of the masks, once each; None where neither says anything."""
    return None if named is None and seen is None else list(dict.fromkeys([*(named or ()), *(seen or ())]))
