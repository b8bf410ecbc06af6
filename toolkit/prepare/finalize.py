"""Shared last stage of every preparation: report problems, split the rows and write the files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.data import Tally
from toolkit.errors import DataError
from toolkit.prepare.measure import ImageFiles, MaskMeasurements, measure_all
from toolkit.prepare.request import PrepareRequest, PrepareResult
from toolkit.prepare.sheet import Layout, choose_rows, write_sheet
from toolkit.prepare.stratify import mixed_groups, split_rows
from toolkit.prepare.write import Row, staged, write_rows
from toolkit.recipe import SPLITS
from toolkit.runfolder import write_json, write_text
from toolkit.scoring.regions import format_location, locate_box

PROBLEMS = "problems.txt"
SHOWN = 20


@dataclass(frozen=True, slots=True)
class DatasetNames:
    """File name, group column and layout of one dataset."""

    file: str
    group: str
    layout: Layout


def measure_images(files: Mapping[str, ImageFiles], request: PrepareRequest, tally: Tally) -> list[MaskMeasurements]:
    """Return the measurements of every image, and count irregular masks in ``tally``.

    Args:
        files: Image name -> its files.
        request: Output folder, workers and progress.
        tally: Counter that gets the names of images with missing or irregular masks.

    Raises:
        DataError: Images or masks are unreadable, or a mask does not fit its image. ``PROBLEMS`` lists all of them.
        Interrupted: A signal requested a stop.
        RunError: A worker process ended unexpectedly.
    """
    found = measure_all(list(files.values()), request)
    _raise_problems([one.problem for one in found if one.problem is not None], request.out)
    for (name, paths), one in zip(files.items(), found, strict=True):
        if paths.mask is None:
            tally.add("images without a mask have no box, outline or location", name)
        elif not one.boxes:
            tally.add("images with an empty mask have no box", name)
        if len(one.boxes or ()) > 1:
            tally.add("images with more than one region", name)
        if one.specks:
            tally.add("masks with regions below 1 % of the largest region, which are ignored", name)
        if one.scaled:
            tally.add("masks with the aspect ratio but not the size of their image, which are resized", name)
    return found


def region_columns(files: ImageFiles, found: MaskMeasurements, root: Path) -> dict[str, Any]:
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
        "area_share": None if found.area_fraction is None else round(found.area_fraction, 6),
    }


def locations(found: MaskMeasurements) -> list[str]:
    """Return the location of each region in words, largest region first."""
    width, height = found.size
    return [format_location(locate_box((x1, y1, x2, y2), (width, height))) for x1, y1, x2, y2 in found.boxes or []]


def split_and_write(
    rows: list[dict[str, Any]], root: Path, names: DatasetNames, request: PrepareRequest, tally: Tally
) -> PrepareResult:
    """Split the rows and write them with the contact sheet and the summary.

    Raises:
        DataError: No row is left.
    """
    if not rows:
        raise DataError("data.no_rows_left", "at least one row must be usable", value=_describe(tally))
    groups = [str(row[names.group]) for row in rows]
    classes = [str(row.get(names.layout.diagnosis) or "") for row in rows]
    for first in mixed_groups(groups, classes):
        name = str(rows[first][names.layout.name])
        tally.add("groups with several diagnoses, which are stratified by the rarest", f"group of {name}")
    for row, split in zip(rows, split_rows(groups, classes, request.fractions, request.seed), strict=True):
        row["split"] = split
    with staged(request.out) as aside:
        write_rows(aside, names.file, rows)
        chosen = choose_rows(rows, names.layout, request.seed)
        for name in write_sheet(aside, chosen, root, names.layout):
            tally.add("images that cannot be decoded, which are grey on the sheet", name)
        prepared = _summary(rows, root, names, request, tally)
        facts = {"seed": request.seed, "shares": dict(request.fractions), "rows": prepared.rows}
        write_json(aside / "summary.json", facts | asdict(prepared))
    for split in set(SPLITS) - set(prepared.splits):
        (request.out / f"{split}.json").unlink(missing_ok=True)
    (request.out / PROBLEMS).unlink(missing_ok=True)
    return prepared


def _summary(
    rows: Sequence[Row], root: Path, names: DatasetNames, request: PrepareRequest, tally: Tally
) -> PrepareResult:
    present = [split for split in SPLITS if any(row["split"] == split for row in rows)]
    counts = Counter((str(row.get(names.layout.diagnosis) or ""), row["split"]) for row in rows)
    groups = {split: len({row[names.group] for row in rows if row["split"] == split}) for split in present}
    return PrepareResult(
        out=request.out,
        image_root=root,
        group=names.group,
        splits={split: request.out / f"{split}.json" for split in present},
        classes={name: {split: counts[name, split] for split in SPLITS} for name in sorted({n for n, _ in counts})},
        groups=groups,
        notes=tally.of(names.file),
    )


def _raise_problems(problems: Sequence[str], out: Path) -> None:
    if not problems:
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / PROBLEMS, "\n".join(problems) + "\n")
    shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN])
    more = f"\n  and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
    rule = f"all images and masks must be usable, and {len(problems):,} are not:\n{shown}{more}\n"
    remedy = f"{out / PROBLEMS} lists all. Repair, replace or remove these files. Missing files are only counted."
    raise DataError("data.files_unusable", rule, place=out, remedy=remedy)


def _describe(tally: Tally) -> str:
    return "; ".join(f"{one.count:,} {one.reason}" for one in tally.of(""))
