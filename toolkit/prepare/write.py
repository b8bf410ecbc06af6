"""Last stage of every preparation: measure the images, split their rows and write the files.

The files get their names at the end. They replace only files of an earlier preparation.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.data import Tally
from toolkit.errors import DataError
from toolkit.prepare.labels import Label, format_labels
from toolkit.prepare.measure import Cell, ImageFiles, MaskMeasurements, PreparedImage, measure_all
from toolkit.prepare.request import PrepareRequest, PrepareResult
from toolkit.prepare.sheet import choose_images, write_sheet
from toolkit.prepare.split import mixed_groups, split_rows
from toolkit.recipe import SPLITS
from toolkit.runfolder import add_output, check_output, csv_text, output_files, write_json
from toolkit.scoring.regions import format_location, locate_box

PROBLEMS = "problems.txt"
LABELS = "labels.toml"
SUMMARY = "summary.json"
SHEETS = ("sheet.png", "sheet.html")
SHOWN = 20
"""Problems that the error message lists. The file has all of them."""

_BOX = pa.list_(pa.int32())
TYPES: Mapping[str, pa.DataType] = {
    "age": pa.float64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "bbox": _BOX,
    "boxes": pa.list_(_BOX),
    "polygons": pa.list_(pa.list_(_BOX)),
    "area_fraction": pa.float64(),
    "mask_available": pa.bool_(),
    "features": pa.list_(pa.string()),
    "concerning_features": pa.list_(pa.string()),
    "confidence": pa.float64(),
}
"""Columns with a type other than string in Parquet."""


Row = Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class DatasetNames:
    """Names of one dataset.

    Attributes:
        file: File of all rows, without suffix.
        group: Group column.
        labels: Diagnoses of the rows. Empty if the task knows them already.
        answer: Parts of an answer that rows have. Empty: those that the task requests by default.
    """

    file: str
    group: str
    labels: tuple[Label, ...] = ()
    answer: tuple[str, ...] = ()


def measure_images(
    files: Mapping[str, ImageFiles], table: str, request: PrepareRequest, tally: Tally
) -> list[MaskMeasurements]:
    """Return the measurements of every image, and count irregular masks in ``tally``.

    Args:
        files: Image name -> its files.
        table: File of all rows, without suffix, which is written later.
        request: Output folder, workers and progress.
        tally: Counter that gets the names of images with missing or irregular masks.

    Raises:
        DataError: Images or masks are unreadable, or a mask does not fit its image. ``PROBLEMS`` lists all of them.
        Interrupted: A signal requested a stop.
        RunError: The output folder has other files, or a worker process ended unexpectedly.
    """
    check_output(request.out, _possible_names(table), force=request.force)
    found = measure_all(list(files.values()), request)
    _raise_problems([one.problem for one in found if one.problem is not None], request)
    for (name, paths), one in zip(files.items(), found, strict=True):
        if paths.mask is None:
            tally.add("images without a mask have no box, outline or location", name, "data.mask_missing")
        else:
            for code, (reason, applies) in _IRREGULAR.items():
                if applies(one):
                    tally.add(reason, f"{paths.mask} ({one.values})" if one.values else str(paths.mask), code)
    return found


_IRREGULAR: Mapping[str, tuple[str, Callable[[MaskMeasurements], object]]] = {
    "data.mask_empty": ("images with an empty mask have no box", lambda one: not one.boxes),
    "data.several_regions": ("images with more than one region", lambda one: len(one.boxes or ()) > 1),
    "data.mask_values_several": ("masks with several foreground values", lambda one: one.values),
    "data.mask_values_rounded": (
        "masks with values at smoothed or compressed edges, which go to the nearest value",
        lambda one: one.rounded,
    ),
    "data.mask_inverted": (
        "masks that may be inverted, because their whole border and most of the image are foreground",
        lambda one: one.inverted,
    ),
    "data.box_fills_image": ("masks with a box that fills the image", lambda one: one.fills),
    "data.region_too_small": (
        "masks with regions below 1 % of the largest region, which are ignored",
        lambda one: one.specks,
    ),
    "data.mask_resized": (
        "masks with the aspect ratio but not the size of their image, which are resized",
        lambda one: one.scaled,
    ),
}
"""Code -> its reason, and whether it applies to the measurements of a mask."""


def _possible_names(table: str) -> list[str]:
    """Return the names of all files that a preparation may write."""
    tables = [f"{table}{suffix}" for suffix in (".json", ".csv", ".parquet")]
    return [*tables, *(f"{split}.json" for split in SPLITS), *SHEETS, SUMMARY, LABELS, PROBLEMS]


def _raise_problems(problems: Sequence[str], request: PrepareRequest) -> None:
    if not problems:
        return
    out = request.out
    add_output(out, PROBLEMS, "\n".join(problems) + "\n", force=request.force, private=True)
    shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN])
    more = f"\n  and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
    rule = f"all images and masks must be usable, and {len(problems):,} are not:\n{shown}{more}\n"
    remedy = f"{out / PROBLEMS} lists all. Repair, replace or remove these files. Missing files are only counted."
    raise DataError("data.files_unusable", rule, place=out, remedy=remedy)


def region_columns(files: ImageFiles, found: MaskMeasurements, root: Path) -> dict[str, Cell]:
    """Return the columns with paths, size, boxes and polygons. Mask columns are None without a mask."""
    boxes = found.boxes or []
    return {
        "image": files.image.relative_to(root).as_posix(),
        "mask": None if files.mask is None else files.mask.relative_to(root).as_posix(),
        "width": found.size[0],
        "height": found.size[1],
        "bbox": boxes[0] if boxes else None,
        "boxes": found.boxes,
        "polygons": found.polygons,
        "area_fraction": None if found.area_fraction is None else round(found.area_fraction, 6),
    }


def locations(found: MaskMeasurements) -> list[str]:
    """Return the location of each region in words, largest region first."""
    return [format_location(locate_box((x1, y1, x2, y2), found.size)) for x1, y1, x2, y2 in found.boxes or []]


def split_and_write(
    images: Sequence[PreparedImage], root: Path, names: DatasetNames, request: PrepareRequest, tally: Tally
) -> PrepareResult:
    """Split the images by group, and write their rows with the contact sheet and the summary.

    Raises:
        DataError: No image is left.
    """
    if not images:
        rule, remedy = "at least one row must be usable", "Correct the paths of the download."
        raise DataError("data.no_rows_left", rule, value=_describe(tally), remedy=remedy)
    groups, classes = [one.group for one in images], [one.diagnosis for one in images]
    for first in mixed_groups(groups, classes):
        name = images[first].name
        tally.add(
            "groups with several diagnoses, which are stratified by the rarest",
            f"group of {name}",
            "data.group_of_several_classes",
        )
    splits = split_rows(groups, classes, request.fractions, request.seed)
    with output_files(request.out, force=request.force, private=True) as staging:
        write_rows(staging, names.file, [{**one.columns, "split": at} for one, at in zip(images, splits, strict=True)])
        for name in write_sheet(staging, choose_images(images, request.seed)):
            tally.add("images that cannot be decoded, which are grey on the sheet", name, "data.image_not_decodable")
        if names.labels:
            (staging / LABELS).write_text(format_labels(names.labels), encoding="utf-8", newline="\n")
        prepared = _summary(images, splits, root, names, request, tally)
        facts = {"seed": request.seed, "fractions": dict(request.fractions), "rows": prepared.rows}
        write_json(staging / SUMMARY, facts | _relative(asdict(prepared), request.out))
    return prepared


def _relative(values: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Return the values with paths relative to the output folder, which may be moved."""
    paths = {
        "out": ".",
        "image_root": _path_from(out, values["image_root"]),
        "splits": {split: file.name for split, file in values["splits"].items()},
        "labels": values["labels"] and LABELS,
    }
    return {**values, **paths}


def _path_from(out: Path, path: Path) -> str:
    try:
        return Path(os.path.relpath(path, out.resolve())).as_posix()
    except ValueError:  # on another drive
        return path.as_posix()


def _summary(
    images: Sequence[PreparedImage],
    splits: Sequence[str],
    root: Path,
    names: DatasetNames,
    request: PrepareRequest,
    tally: Tally,
) -> PrepareResult:
    present = [split for split in SPLITS if split in splits]
    counts = Counter((one.diagnosis, split) for one, split in zip(images, splits, strict=True))
    groups = Counter(split for _, split in {(one.group, split) for one, split in zip(images, splits, strict=True)})
    return PrepareResult(
        columns=tuple(images[0].columns),
        out=request.out,
        image_root=root,
        group=names.group,
        splits={split: request.out / f"{split}.json" for split in present},
        classes={name: {split: counts[name, split] for split in SPLITS} for name in sorted({n for n, _ in counts})},
        groups={split: groups[split] for split in present},
        notes=tally.of(names.file),
        labels=request.out / LABELS if names.labels else None,
        answer=names.answer,
    )


def _describe(tally: Tally) -> str:
    return "; ".join(f"{one.count:,} {one.reason}" for one in tally.of(""))


def write_rows(folder: Path, name: str, rows: Sequence[Row]) -> None:
    """Write ``name`` as .json (a list, one row per line), .csv and .parquet, and each split as .json.

    A split without rows has no file. In the CSV, missing values are empty cells and lists are JSON.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    _write_json(folder / f"{name}.json", rows)
    _write_csv(folder / f"{name}.csv", columns, rows)
    _write_parquet(folder / f"{name}.parquet", columns, rows)
    for split in SPLITS:
        if chosen := [row for row in rows if row["split"] == split]:
            _write_json(folder / f"{split}.json", chosen)


def _write_json(file: Path, rows: Sequence[Row]) -> None:
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")


def _write_csv(file: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    text = csv_text([columns, *([_cell(row.get(column)) for column in columns] for row in rows)])
    file.write_text(text, encoding="utf-8", newline="\n")


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write_parquet(file: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    schema = pa.schema([(column, TYPES.get(column, pa.string())) for column in columns])
    pq.write_table(pa.Table.from_pylist(list(rows), schema), file)
