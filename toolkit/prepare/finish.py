"""The end that all preparations have in common: problems told, rows split, files written."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.data import Tally
from toolkit.errors import DataError
from toolkit.prepare.masks import Job, MaskMeasurements
from toolkit.prepare.measure import forget, measure_all
from toolkit.prepare.request import Prepared, Request
from toolkit.prepare.sheet import Layout, choose_rows, write_sheet
from toolkit.prepare.stratify import mixed_groups, split_rows
from toolkit.prepare.write import Row, staged, write_rows
from toolkit.recipe import SPLITS
from toolkit.runfolder import write_json, write_text
from toolkit.scoring.regions import format_location, locate_box

PROBLEMS = "problems.txt"
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Names:
    """What one kind of data calls its files and columns."""

    file: str
    group: str
    layout: Layout


def measure_images(names: Sequence[str], jobs: Sequence[Job], request: Request, tally: Tally) -> list[MaskMeasurements]:
    """Every picture and mask measured; what is odd about masks is counted under the pictures' names.

    Raises:
        DataError: pictures or masks that cannot be read, and masks that are not of their picture; all are listed in
            ``PROBLEMS``.
        Interrupted, RunError: as ``measure_all``.
    """
    found = measure_all(jobs, request)
    _stop_at([one.problem for one in found if one.problem is not None], request.out)
    for name, job, one in zip(names, jobs, found, strict=True):
        if job.mask is None:
            tally.add("without a mask: no box, outline or place", name)
        elif not one.boxes:
            tally.add("with an empty mask: no box", name)
        if len(one.boxes or ()) > 1:
            tally.add("with more than one region", name)
        if one.specks:
            tally.add("with specks below 1 % of the largest region, which are no regions", name)
        if one.scaled:
            tally.add("with a mask of another size and the same shape: brought to the picture's", name)
    return found


def spatial(job: Job, found: MaskMeasurements, root: Path) -> dict[str, Any]:
    """The columns that say where things are; None where there is no mask."""
    boxes = found.boxes or []
    return {
        "image": job.image.relative_to(root).as_posix(),
        "mask": None if job.mask is None else job.mask.relative_to(root).as_posix(),
        "width": found.size[0],
        "height": found.size[1],
        "bbox": boxes[0] if boxes else None,
        "boxes": found.boxes,
        "polygons": found.polygons,
        "area_share": None if found.area_share is None else round(found.area_share, 6),
    }


def places(found: MaskMeasurements) -> list[str]:
    """The place of each region in words, the largest first."""
    width, height = found.size
    return [format_location(locate_box((x1, y1, x2, y2), (width, height))) for x1, y1, x2, y2 in found.boxes or []]


def finish(rows: list[dict[str, Any]], root: Path, names: Names, request: Request, tally: Tally) -> Prepared:
    """Split the rows and write them, the sheet and the summary; what was kept for going on is removed.

    Raises:
        DataError: there is no row.
    """
    if not rows:
        raise DataError("data.no_rows_left", "at least one row must be usable", value=_told(tally))
    groups = [str(row[names.group]) for row in rows]
    classes = [str(row.get(names.layout.diagnosis) or "") for row in rows]
    for first in mixed_groups(groups, classes):
        name = str(rows[first][names.layout.name])
        tally.add("lesions or patients with several diagnoses: split as the rarest of them", f"that of {name}")
    for row, split in zip(rows, split_rows(groups, classes, request.shares, request.seed), strict=True):
        row["split"] = split
    with staged(request.out) as aside:
        write_rows(aside, names.file, rows)
        chosen = choose_rows(rows, names.layout, request.seed)
        for name in write_sheet(aside, chosen, root, names.layout):
            tally.add("pictures of the sheet that cannot be decoded: grey there", name)
        prepared = _summary(rows, root, names, request, tally)
        facts = {"seed": request.seed, "shares": dict(request.shares), "rows": prepared.rows}
        write_json(aside / "summary.json", facts | asdict(prepared))
    for split in set(SPLITS) - set(prepared.splits):
        (request.out / f"{split}.json").unlink(missing_ok=True)
    (request.out / PROBLEMS).unlink(missing_ok=True)
    forget(request.out)
    return prepared


def _summary(rows: Sequence[Row], root: Path, names: Names, request: Request, tally: Tally) -> Prepared:
    there = [split for split in SPLITS if any(row["split"] == split for row in rows)]
    counts = Counter((str(row.get(names.layout.diagnosis) or ""), row["split"]) for row in rows)
    groups = {split: len({row[names.group] for row in rows if row["split"] == split}) for split in there}
    return Prepared(
        out=request.out,
        image_root=root,
        group=names.group,
        splits={split: request.out / f"{split}.json" for split in there},
        classes={name: {split: counts[name, split] for split in SPLITS} for name in sorted({n for n, _ in counts})},
        groups=groups,
        notes=tally.of(names.file),
    )


def _stop_at(problems: Sequence[str], out: Path) -> None:
    if not problems:
        return
    write_text(out / PROBLEMS, "\n".join(problems) + "\n")
    shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN])
    more = f"\n  and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
    rule = f"all images and masks must be usable, and {len(problems):,} are not:\n{shown}{more}\n"
    remedy = f"{out / PROBLEMS} lists all. Repair, replace or remove these files. Missing files are only counted."
    raise DataError("data.files_unusable", rule, place=out, remedy=remedy)


def _told(tally: Tally) -> str:
    return "; ".join(f"{one.count:,} {one.reason}" for one in tally.of(""))
