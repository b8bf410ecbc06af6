"""ImageRef, an image on disk that is not yet opened, with checks of its path and file, and common error messages."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.errors import NOTHING, ImageError
from toolkit.identifiers import shown_cell, without_names
from toolkit.images import names

REPAIR = 'Repair or replace the file, or set images.unreadable to "skip" or "placeholder".'

INSIDE = ("images.outside_root", "an image path must stay inside the data root")
NOT_READABLE = ("images.not_readable", "the image must be readable")
TRUNCATED = ("images.truncated", "the file must be complete, and its end is missing")
NO_FRAME = ("images.frame_missing", "the frame (from 0) must be less than the number of frames")
"""Code and rule of problems that are common to several formats."""

SET_ROOT = "Set data.image_root to the folder that has the images."

AXES = ("axial", "coronal", "sagittal")
VOLUMES = (".nii", ".nii.gz")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image on disk, not yet opened.

    ``path`` is absolute and inside the data root. ``frame`` counts from 0 (multi-frame DICOM, multi-page TIFF, slices
    of a volume). ``axis`` is that of a volume's slices, one of ``AXES``. Empty: no slice is named. ``crop`` is
    x1, y1, x2, y2 in pixels of the upright image, x2 and y2 exclusive. None means the whole image. ``found`` has the
    codes of ``names.WAYS`` by which the file was found.
    """

    path: Path
    frame: int = 0
    crop: tuple[int, int, int, int] | None = None
    axis: str = ""
    found: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """The path as rows write it, with the frame or slice: ``ct.nii.gz#coronal=42`` or ``scan.tif#1``."""
        at = f"{self.axis}={self.frame}" if self.axis else str(self.frame or "")
        return f"{self.path}#{at}" if at else str(self.path)

    @property
    def part(self) -> str:
        """Frame, axis and crop as one word. Together with the path or the content it identifies the pixels."""
        return "_".join(map(str, (self.frame, *filter(None, [self.axis]), *(self.crop or ()))))


def is_volume(path: Path) -> bool:
    """Return whether a file is a NIfTI volume, by its suffix."""
    return path.name.lower().endswith(VOLUMES)


def image_ref(path_text: str, root: Path | str, place: object, found: tuple[str, ...] = ()) -> ImageRef:
    """Return the reference of an image path without touching the disk, which keeps it cheap for every row.

    Args:
        path_text: Path relative to ``root``, or absolute and inside it.
        root: Absolute data root.
        place: Row and column, for the error message.
        found: How the file was found, see ``ImageRef``.

    Raises:
        ImageError: The path is empty or leaves ``root``. Symbolic links are resolved later, when the image is opened.
    """
    return ImageRef(Path(contained_path(path_text, root_folder(root), place)), found=found)


def root_folder(root: Path | str) -> str:
    """Return a data root as ``contained_path`` needs it: normalised and with a separator at its end."""
    return os.path.join(os.path.normpath(root), "")  # noqa: PTH118 (a Path costs ten times as much here)


def contained_path(path_text: str, folder: str, place: object) -> str:
    """Return the absolute path of ``image_ref`` as text. ``folder`` comes from ``root_folder``.

    Raises:
        ImageError: As in ``image_ref``.
    """
    if not isinstance(path_text, str) or not path_text.strip() or "\0" in path_text:
        rule, remedy = "an image path must be text that names a file", "Correct the path."
        raise ImageError("images.path_not_text", rule, place=place, value=shown_cell(path_text), remedy=remedy)
    path = os.path.normpath(os.path.join(folder, path_text))  # noqa: PTH118
    if not path.startswith(folder) or path == folder:
        value = f"{'absolute' if os.path.isabs(path_text) else 'relative'} path"  # noqa: PTH117
        raise ImageError(*INSIDE, place=place, value=value, remedy=f"{SET_ROOT} It is {folder} now.")
    return path


def stat_image(path: Path, roots: Sequence[str] = ()) -> os.stat_result:
    """Return the stat result of an image after resolving links, if the image is usable.

    Args:
        path: The image file.
        roots: Real paths of the folders that must contain the file. Empty means no restriction.

    Raises:
        ImageError: The file is missing, unreadable, empty, not a regular file, or outside ``roots``.
    """
    try:
        facts = path.stat()
        real = os.path.realpath(path, strict=True) if roots else ""
    except FileNotFoundError:
        raise _missing(path, roots) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise unreadable_image(path, *NOT_READABLE, str(error)) from error
    if not stat.S_ISREG(facts.st_mode):
        raise unreadable_image(path, "images.not_regular_file", "an image must be a regular file")
    if not facts.st_size:
        raise unreadable_image(path, "images.file_empty", "an image must not be an empty file")
    if roots and not any(real.startswith(os.path.join(root, "")) for root in roots):  # noqa: PTH118
        link = "A symbolic link leads out of it. Set data.image_root to the folder that has the files themselves."
        raise ImageError(*INSIDE, place=path, value="symbolic link", remedy=link)
    return facts


def _missing(path: Path, roots: Sequence[str]) -> ImageError:
    """Return the error for a missing file. Names of other files are not in the message, as they can name patients."""
    if path.is_symlink():
        rule, remedy = "the target of a symbolic link must exist", f"Restore the target. {REPAIR}"
        return ImageError("images.link_broken", rule, place=path, remedy=remedy)
    if count := len(_elsewhere(path, roots)):
        rule = "the image must exist, and a file of this name is in another folder of data.image_root"
        remedy = "Write the path below data.image_root into the rows, or set data.image_root to the folder of the file."
        return ImageError("images.in_other_folder", rule, place=path, value=_files(count), remedy=remedy)
    found = names.candidates(path)
    if len(found) > 1:
        rule, remedy = "the image name must mean one file", "Add the suffix, or rename the files."
        return ImageError("images.name_ambiguous", rule, place=path, value=_files(len(found)), remedy=remedy)
    nearest = ", and the folder has a file with a similar name" if found else ""
    return ImageError("images.missing", f"the image must exist{nearest}", place=path, remedy=f"{SET_ROOT} {REPAIR}")


def _files(count: int) -> str:
    return f"{count} {'file' if count == 1 else 'files'}"


def _elsewhere(path: Path, roots: Sequence[str]) -> list[str]:
    """Return the paths below the root of all files with the name of a missing one."""
    folder = next((os.path.realpath(parent) for parent in path.parents if parent.is_dir()), "")
    root = next((root for root in roots if os.path.join(folder, "").startswith(os.path.join(root, ""))), None)  # noqa: PTH118
    return [] if root is None else names.find_in_tree(root, names.last_part(path.name), whole=True)


def unreadable_image(path: Path, code: str, rule: str, value: object = NOTHING) -> ImageError:
    """Return the error for a file that cannot be parsed as an image, with its remedy.

    A text in ``value`` can be that of a library, which quotes names of files and values of DICOM.
    """
    value = without_names(value) if isinstance(value, str) else value
    return ImageError(code, rule, place=path, value=value, remedy=REPAIR)
