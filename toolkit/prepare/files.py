"""What lies in the folders of a download: pictures, masks, masks of features, tables; told apart by their names."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.errors import DataError

PICTURES = (".jpg", ".jpeg", ".png")
TABLES = (".csv",)
_ROLE = re.compile(r"(.+?)_(?:(segmentation)|attribute_(.+)|superpixels)", re.IGNORECASE)
"""ISIC's endings: the lesion's mask, the mask of one dermoscopic feature, and an aid for annotating."""


@dataclass(slots=True)
class Catalogue:
    """Files of a download by the name of their picture.

    Attributes:
        pictures: name -> file.
        masks: name -> ``NAME_segmentation.png``.
        features: name -> feature in words -> its mask.
        tables: CSV files.
        repeated: names of pictures and masks that were found more than once; the first is used.
        seen: every file, for a message that nothing fits.
    """

    pictures: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    features: dict[str, dict[str, Path]] = field(default_factory=dict)
    tables: list[Path] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    seen: list[Path] = field(default_factory=list)

    def add(self, file: Path) -> None:
        """Put one file where its name says that it belongs."""
        self.seen.append(file)
        suffix, role = file.suffix.lower(), _ROLE.fullmatch(file.stem)
        if suffix in TABLES:
            self.tables.append(file)
        elif suffix not in PICTURES:
            return
        elif role is None:
            self._keep(self.pictures, file.stem, file)
        elif role[2]:
            self._keep(self.masks, role[1], file)
        elif role[3]:
            self._keep(self.features.setdefault(role[1], {}), role[3].replace("_", " ").lower(), file)

    def _keep(self, known: dict[str, Path], name: str, file: Path) -> None:
        if known.setdefault(name, file) is not file:
            self.repeated.append(str(file))


def catalogue(folders: Sequence[Path], without: Iterable[Path] = ()) -> Catalogue:
    """All files below these folders, the first folder's first, without those below ``without``.

    Raises:
        DataError: a folder is not there.
    """
    found, left_out = Catalogue(), {folder.resolve() for folder in without}
    for folder in folders:
        if not folder.is_dir():
            rule = "the folder must exist"
            raise DataError("data.folder_missing", rule, place=folder, remedy="Correct the path.")
        for file in sorted(_walk(folder.resolve(), left_out), key=_order):
            found.add(file)
    return found


def common_root(folders: Iterable[Path]) -> Path:
    """The innermost folder that holds all of these, absolute and without symbolic links.

    Raises:
        DataError: there is none (different drives).
    """
    paths = [str(folder.resolve()) for folder in folders]
    try:
        return Path(os.path.commonpath(paths))
    except ValueError:
        rule, remedy = "images and masks must be on one drive", "Copy them to one drive."
        raise DataError("data.folders_on_two_drives", rule, value=paths, remedy=remedy) from None


def _walk(folder: Path, without: set[Path]) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        inside = Path(place)
        folders[:] = [name for name in folders if _is_shown(name) and inside / name not in without]
        yield from (inside / name for name in files if _is_shown(name))


def _is_shown(name: str) -> bool:
    """Not hidden, and not what macOS leaves in archives."""
    return not name.startswith((".", "__MACOSX"))


def _order(file: Path) -> tuple[int, str]:
    """Of one name with two endings the one that stands first in ``PICTURES``."""
    suffix = file.suffix.lower()
    return PICTURES.index(suffix) if suffix in PICTURES else len(PICTURES), file.as_posix()
