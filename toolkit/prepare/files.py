"""Files of a download by role: images, masks, feature masks and tables, recognised by their names."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.errors import DataError

IMAGES = (".jpg", ".jpeg", ".png")
TABLES = (".csv",)
_ROLE = re.compile(r"(.+?)_(?:(segmentation)|attribute_(.+)|superpixels)", re.IGNORECASE)
"""ISIC's suffixes: the lesion mask, the mask of one dermoscopic feature, and superpixels for annotation."""


@dataclass(slots=True)
class DownloadedFiles:
    """Files of a download by the name of their image.

    Attributes:
        images: Image name -> file.
        masks: Image name -> ``NAME_segmentation.png``.
        features: Image name -> feature name -> mask file.
        tables: CSV files.
        repeated: Images and masks whose name occurred before. The first file is used.
        seen: All files, for an error message if no file fits.
    """

    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
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
            self._keep(self.images, file.stem, file)
        elif role[2]:
            self._keep(self.masks, role[1], file)
        elif role[3]:
            self._keep(self.features.setdefault(role[1], {}), role[3].replace("_", " ").lower(), file)

    def _keep(self, known: dict[str, Path], name: str, file: Path) -> None:
        if known.setdefault(name, file) is not file:
            self.repeated.append(str(file))


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
