"""A download: its files by role, recognized by their names, and its CSV tables, with columns found by name."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.data import Tally
from toolkit.errors import DataError, DataProblems, Problem

IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
TABLES = (".csv",)
_ROLE = re.compile(r"(.+?)_(?:(segmentation|mask)|attribute_(.+)|superpixels)", re.IGNORECASE)
"""Suffixes of files: the lesion mask, and ISIC's mask of one dermoscopic feature and superpixels for annotation."""

BLANK = frozenset({"", "na", "n/a", "nan", "none", "null"})
"""Cell texts that mean a missing value, in lower case."""


@dataclass(slots=True)
class DownloadedFiles:
    """Files of a download by the name of their image.

    Attributes:
        images: Image name -> file.
        plain: Image name -> all its files, from which ``images`` has the first.
        masks: Image name -> its files ``NAME_segmentation.png`` or ``NAME_mask.png``, in any case.
        features: Image name -> feature name -> mask file.
        tables: CSV files.
        repeated: Images and feature masks whose name occurred before. The first file is used.
        seen: All files, for an error message if no file fits.
    """

    images: dict[str, Path] = field(default_factory=dict)
    plain: dict[str, list[Path]] = field(default_factory=dict)
    masks: dict[str, list[Path]] = field(default_factory=dict)
    features: dict[str, dict[str, Path]] = field(default_factory=dict)
    tables: list[Path] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    seen: list[Path] = field(default_factory=list)

    def add(self, file: Path) -> None:
        """Register one file under the role that its name implies."""
        self.seen.append(file)
        suffix, role = file.suffix.lower(), _ROLE.fullmatch(file.stem)
        if suffix in TABLES:
            self.tables.append(file)
        elif suffix not in IMAGES:
            return
        elif role is None:
            self.plain.setdefault(file.stem, []).append(file)
            self._keep(self.images, file.stem, file)
        elif role[2]:
            self.masks.setdefault(role[1], []).append(file)
        elif role[3]:
            self._keep(self.features.setdefault(role[1], {}), role[3].replace("_", " ").lower(), file)

    def _keep(self, known: dict[str, Path], name: str, file: Path) -> None:
        if known.setdefault(name, file) is not file:
            self.repeated.append(str(file))


def choose_masks(candidates: Mapping[str, Sequence[Path]], images: Iterable[str], tally: Tally) -> dict[str, Path]:
    """Return the mask of each image. Names of masks and images may differ in case.

    Args:
        candidates: Image name, as masks have it -> its files. Files with equal bytes are one mask.
        images: Names of the images.
        tally: Counter that gets repeated files, and masks whose name differs from that of the image.

    Raises:
        DataError: An image has two different masks, or a mask belongs to two images. The error shows all of them.
    """
    names = list(images)
    exact, folded = set(names), _by_case(names)
    found: dict[str, list[Path]] = {}
    for name, files in candidates.items():
        for own in [name] if name in exact else folded.get(name.lower(), [name]):
            found.setdefault(own, []).extend(files)
            if own != name:
                tally.add(CASE_DIFFERS, f"{own}: {files[0]}", "data.mask_case_changed")
    several = []
    for name, files in found.items():
        different = {file.read_bytes() for file in files} if len(files) > 1 else ()
        if len(different) > 1:
            rule, remedy = "an image must have one mask", "Remove the others."
            several.append(Problem("data.masks_of_image", rule, name, list(map(str, files)), remedy))
        for file in files[1:]:
            tally.add(REPEATED, str(file), "data.file_name_repeated")
    if several:
        raise DataProblems("data.several_masks", "images have several different masks. Keep one of each", several)
    return {name: files[0] for name, files in found.items()}


def _by_case(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.lower(), []).append(name)
    return found


CASE_DIFFERS = "masks that were found as the only file whose name differs in upper and lower case"
REPEATED = "file names that occur twice, where the first file is used"


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file: header and rows of equal length."""

    file: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, names: Sequence[str]) -> int | None:
        """Return the index of the first name that is a column, ignoring case, or None."""
        folded = [name.lower() for name in self.header]
        return next((folded.index(name.lower()) for name in names if name.lower() in folded), None)

    def records(self, fields: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
        """Yield each row as field -> text for the fields that have a column. Missing values are empty texts."""
        found = {field: at for field, names in fields.items() if (at := self.column(names)) is not None}
        for row in self.rows:
            yield {field: row[at] for field, at in found.items()}


def list_files(folders: Sequence[Path], without: Iterable[Path] = ()) -> DownloadedFiles:
    """Return all files below these folders in order, except those below ``without``.

    Raises:
        DataError: A folder does not exist.
    """
    found, left_out = DownloadedFiles(), {folder.resolve() for folder in without}
    for folder in folders:
        if not folder.is_dir():
            rule = "the folder must exist"
            raise DataError("data.folder_missing", rule, place=folder, remedy="Correct the path.")
        for file in sorted(_walk(folder.resolve(), left_out), key=_order):
            found.add(file)
    return found


def common_root(folders: Iterable[Path]) -> Path:
    """Return the deepest common parent folder, absolute and without symbolic links.

    Raises:
        DataError: The folders are on different drives.
    """
    paths = [str(folder.resolve()) for folder in folders]
    try:
        return Path(os.path.commonpath(paths))
    except ValueError:
        rule, remedy = "images and masks must be on one drive", "Copy them to one drive."
        raise DataError("data.folders_on_two_drives", rule, value=paths, remedy=remedy) from None


def read_table(file: Path) -> Table:
    """Load a CSV file with any of the separators comma, semicolon and tab, any line ends, with or without BOM.

    Raises:
        DataError: The file is unreadable or not UTF-8, or a row does not have as many cells as the header.
    """
    if file.exists() and not file.is_file():  # reading a pipe or a device would wait, or never end
        rule, remedy = "a table must be a regular file", "Correct the path, or write the table to a file."
        raise DataError("data.source_not_a_file", rule, place=file, remedy=remedy)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        rule, remedy = "a table must be UTF-8", "Save it as UTF-8."
        raise DataError("data.not_utf8", rule, place=file, value=error.reason, remedy=remedy) from None
    except OSError as error:
        rule, remedy = "a table must be readable", "Correct the path, or change its permissions."
        value = error.strerror or str(error)
        raise DataError("data.file_not_readable", rule, place=file, value=value, remedy=remedy) from None
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator)
    rows = []
    try:
        for cells in reader:
            if cells and any(cells):
                rows.append(tuple(_plain(cell) for cell in cells))
                if len(cells) != len(rows[0]):
                    rule = f"a row must have as many cells as the first line ({len(rows[0])})"
                    place, remedy = f"{file}, line {reader.line_num:,}", "Correct the line."
                    raise DataError("data.csv_cell_count", rule, place=place, value=len(cells), remedy=remedy)
    except csv.Error as error:
        rule, place = f"the CSV must be valid: {error}", f"{file}, line {reader.line_num:,}"
        raise DataError("data.csv_invalid", rule, place=place, remedy="Correct the file.") from None
    if not rows:
        rule, remedy = "a table must have a first line with the names of its columns", "Add this line."
        raise DataError("data.csv_header_invalid", rule, place=file, remedy=remedy)
    return Table(file, tuple(rows[0]), tuple(rows[1:]))


def require_columns(table: Table, fields: Mapping[str, Sequence[str]]) -> None:
    """Check that every field has a column.

    Raises:
        DataError: Columns are missing. The error lists all of them.
    """
    missing = [names for names in fields.values() if table.column(names) is None]
    if missing:
        wanted = "; ".join(" or ".join(names) for names in missing)
        columns = ", ".join(table.header)
        rule, remedy = f"the table must have a column {wanted}", "Add it, or rename a column."
        raise DataError("data.column_missing", rule, place=table.file, value=columns, remedy=remedy)


def read_number(text: str) -> float | None:
    """Return the number in a cell, or None if it has no finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _plain(cell: str) -> str:
    text = cell.strip()
    return "" if text.lower() in BLANK else text


def _walk(folder: Path, without: set[Path]) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        inside = Path(parent)
        folders[:] = [name for name in folders if _is_shown(name) and inside / name not in without]
        yield from (inside / name for name in files if _is_shown(name))


def _is_shown(name: str) -> bool:
    """Return whether a file is neither hidden nor macOS metadata from an archive."""
    return not name.startswith((".", "__MACOSX"))


def _order(file: Path) -> tuple[int, str]:
    """Return a sort key that puts the suffixes of ``IMAGES`` first, in their order."""
    suffix = file.suffix.lower()
    return IMAGES.index(suffix) if suffix in IMAGES else len(IMAGES), file.as_posix()
