"""The next round of ratings: a rating sheet of a finished run's images, and the files that experts return.

The key of a sheet stays in the run, below ``sheets/``, and is found by the sheet's id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data import row_cache
from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.sources import find_source, stream_source
from toolkit.errors import DataError, ToolkitError
from toolkit.imagegen.generate import FinishedRun, load_base, prompts_by_modality, to_pixels, use_method
from toolkit.imagegen.generators.ddim import make_schedule
from toolkit.imagegen.generators.generator import Generator
from toolkit.imagegen.generators.sampling import generate
from toolkit.imagegen.ratings.experts import IntraRater, intra_rater_agreement
from toolkit.imagegen.ratings.load import Ratings, load_ratings
from toolkit.imagegen.ratings.prepare import image_stores
from toolkit.imagegen.ratings.sheet import (
    Sheet,
    SheetItem,
    SheetKey,
    SheetOptions,
    check_folder,
    ratings_by_source,
    read_key,
    write_sheet,
)
from toolkit.imagegen.seeds import derive_seed
from toolkit.runfolder import Progress, RunFolder, csv_text, no_progress, require_writable, write_text

KEYS = "sheets"

COLUMNS = ("image_path", "rating", "modality", "expert_level", "prompt", "rater_id", "sheet", "page", "position")
"""Columns of a page's CSV."""

_Place = tuple[str, int, int]
"""Rater, page and position: at most one rating."""


@dataclass(frozen=True, slots=True)
class SourceRatings:
    """Ratings of the images of one source: their number, their mean from 0 to 1, and how many are the best rating."""

    ratings: int
    mean: float
    best: float


@dataclass(frozen=True, slots=True)
class Collected:
    """The ratings that experts returned.

    Attributes:
        file: the ratings file for ``imagegen.ratings``.
        ratings: number of ratings.
        images: rated images.
        missing: images of the sheet without a rating.
        agreement: the agreement of experts with themselves.
        by_source: source -> its ratings.
    """

    file: Path
    ratings: int
    images: int
    missing: int
    agreement: IntraRater
    by_source: Mapping[str, SourceRatings]


def write_run_sheet(
    finished: FinishedRun,
    methods: Sequence[str],
    images: int,
    options: SheetOptions,
    folder: Path,
    progress: Progress = no_progress,
) -> tuple[Sheet, Path]:
    """Generate images by each method and write a rating sheet of them. Return it with the file of its key.

    Args:
        finished: the run.
        methods: sources of the images.
        images: the number of images of each method. They are divided evenly among the run's prompts.
        options: order and size of the sheet. The images depend on its seed too.
        folder: goes to the experts. It must be absent or empty.
        progress: called after each method.

    Raises:
        DataError: a path exists, or the ratings with the prompts cannot be read.
        ModelError: the base cannot be loaded, or is another one.
        RunError: a method has not finished.
    """
    methods = [finished.require(method) for method in dict.fromkeys(methods)]
    key_file = finished.run.path / KEYS / f"{folder.absolute().name}.json"
    check_folder(folder.absolute())
    if key_file.exists():
        rule, remedy = "the run must not have a sheet of this name yet", "Choose another name for the folder."
        raise DataError("imagegen.sheet_key_exists", rule, place=key_file, value=folder.name, remedy=remedy)
    prompts = [(prompt, modality) for modality, own in prompts_by_modality(finished).items() for prompt in own]
    wanted = [prompts[number % len(prompts)] for number in range(images)]
    generator, items = load_base(finished), list[SheetItem]()
    for done, method in enumerate(methods, start=1):
        use_method(finished, generator, method)
        items += _items(finished, generator, method, wanted, options.seed)
        progress("methods", done, len(methods))
    stores = image_stores(finished.section, finished.recipe.images)
    return write_sheet(items, finished.section, stores, folder, key_file, options), key_file


def collect_ratings(files: Sequence[Path], key: SheetKey, out: Path) -> int:
    """Write the ratings of all files into one CSV, with ``patient_id`` from the key, and return their number.

    The same rating in several files is written once. Rows are sorted by rater, page and position.

    Args:
        files: CSV files of one sheet, of any pages and raters.
        key: the sheet's key.
        out: must be absent. If it is in the sheet's folder, its paths need no ``imagegen.image_root``.

    Raises:
        DataError: a file is of another sheet or was changed, two files contradict each other, or ``out`` exists.
        RunError: the folder of ``out`` cannot be written.
    """
    if out.exists():
        raise DataError(
            "imagegen.collected_file_exists", "the file must not exist yet", place=out, remedy="Choose another file."
        )
    require_writable(out.absolute().parent)
    patient_of = {entry.image_path: entry.patient for entry in key.images}
    rows: dict[_Place, tuple[list[str], Path]] = {}
    for file in files:
        for number, record in enumerate(_records(file), start=1):
            place, cells = _read_rating(record, key, patient_of, f"{file}, row {number}")
            known, other = rows.setdefault(place, (cells, file))
            if known != cells:
                rule = "the files of a sheet must not contradict each other"
                remedy = f"A page was changed after a download. Remove the older of this file and {other.name}."
                raise DataError(
                    "imagegen.sheet_ratings_conflict",
                    rule,
                    place=f"{file}, row {number}",
                    value=record["rating"],
                    remedy=remedy,
                )
    text = csv_text([[*COLUMNS, "patient_id"], *(rows[place][0] for place in sorted(rows))])
    write_text(out, text, private=True)
    return len(rows)


def collect_run_sheet(finished: FinishedRun, files: Sequence[Path], sheet: Path, out: Path | None = None) -> Collected:
    """Join the files that experts returned, and compare the experts with themselves and the sources with each other.

    Args:
        finished: the run that the sheet is of.
        files: CSV files of one sheet, of any pages and raters.
        sheet: the sheet's folder, with its images.
        out: must be absent. None: ``ratings.csv`` in the sheet's folder, where its paths need no image root.

    Raises:
        DataError: a file is of another sheet or was changed, files contradict each other, an image is missing, or
            ``out`` exists.
    """
    key, folder = _find_key(finished.run, sheet), sheet.absolute()
    out = folder / "ratings.csv" if out is None else out.absolute()
    count = collect_ratings(files, key, out)
    try:
        section = finished.section.model_copy(update={"image_root": folder, "max_dropped": 0.0})
        ratings = load_ratings(section, (str(out),))
        sources = ratings_by_source(ratings, key)
    except ToolkitError:
        out.unlink()
        raise
    by_source = {source: _of_source(own) for source, own in sources.items() if own.count}
    missing = len(key.images) - len(ratings.images)
    return Collected(out, count, len(ratings.images), missing, intra_rater_agreement(ratings), by_source)


def _items(
    finished: FinishedRun, generator: Generator, method: str, wanted: Sequence[tuple[str, str]], seed: int
) -> list[SheetItem]:
    """Return images of one method. Noise differs between methods, so that no two images of a sheet are alike."""
    keys = finished.section.generator
    schedule = make_schedule(generator.scheduler, keys.steps)
    own = derive_seed(seed, "sheet", method)
    pixels = to_pixels(generate(generator, schedule, [prompt for prompt, _ in wanted], own, keys.batch_size))
    return [SheetItem(image, *texts, method) for image, texts in zip(pixels, wanted, strict=True)]


def _find_key(run: RunFolder, sheet: Path) -> SheetKey:
    """Return the key whose images the folder of a sheet has."""
    if not sheet.is_dir():
        raise DataError(
            "imagegen.sheet_folder_missing",
            "the sheet's folder must exist",
            place=sheet,
            remedy="Name the folder that was sent to experts.",
        )
    keys = [read_key(file) for file in sorted((run.path / KEYS).glob("*.json"))]
    for key in keys:
        if all((sheet / entry.image_path).is_file() for entry in key.images):
            return key
    rule = "the folder must have all images of a sheet of this run"
    remedy = "Name the run that the sheet is of, and the folder as it was written."
    raise DataError(
        "imagegen.sheet_incomplete", rule, place=sheet, value=f"{len(keys)} sheets in {run.path / KEYS}", remedy=remedy
    )


def _of_source(ratings: Ratings) -> SourceRatings:
    levels = [level for image in ratings.images for level in image.levels]
    top = len(ratings.rating_range) - 1
    return SourceRatings(len(levels), ratings.normalised(sum(levels) / len(levels)), levels.count(top) / len(levels))


def _records(file: Path) -> list[Any]:
    return [
        record for _, record, _ in stream_source(find_source(str(file)), EmbeddedImageStore(row_cache() / "images"))
    ]


def _read_rating(record: Any, key: SheetKey, patient_of: Mapping[str, str], place: str) -> tuple[_Place, list[str]]:
    missing = [name for name in COLUMNS if not isinstance(record, dict) or not isinstance(record.get(name), str)]
    if missing:
        remedy = "Use the file as it was downloaded."
        raise DataError(
            "imagegen.sheet_columns_missing",
            "a rating sheet's columns must exist",
            place=place,
            value=missing,
            remedy=remedy,
        )
    cells = {name: record[name] for name in COLUMNS}
    if cells["sheet"] != key.sheet or cells["image_path"] not in patient_of:
        found = f"{cells['image_path']} of sheet {cells['sheet']}"
        remedy = "Use the key that was written with the sheet."
        raise DataError(
            "imagegen.sheet_image_not_in_key",
            f"the image must be in the key of sheet {key.sheet}",
            place=place,
            value=found,
            remedy=remedy,
        )
    if not (cells["page"].isdecimal() and cells["position"].isdecimal()):
        value = (cells["page"], cells["position"])
        remedy = "Use the file as it was downloaded."
        raise DataError(
            "imagegen.sheet_position_not_whole",
            "page and position must be whole numbers",
            place=place,
            value=value,
            remedy=remedy,
        )
    shown = cells["rater_id"], int(cells["page"]), int(cells["position"])
    return shown, [*cells.values(), patient_of[cells["image_path"]]]
