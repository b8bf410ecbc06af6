"""Paths of pictures: inside the data root, ordinary files, and the words for what is wrong with one."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from toolkit.errors import NOTHING, ImageError
from toolkit.images.ref import ImageRef

REPAIR = 'Repair or replace the file, or set images.unreadable to "skip" or "placeholder".'
INSIDE = ("images.outside_root", "an image path must stay inside the data root")
NOT_READABLE = ("images.not_readable", "the image must be readable")
TRUNCATED = ("images.truncated", "the file must be complete, and its end is missing")
NO_FRAME = ("images.frame_missing", "the frame (from 0) must be less than the number of frames")
"""Code and rule of problems that several formats have."""

SET_ROOT = "Set data.image_root to the folder that has the images."


def image_ref(path_text: str, root: Path | str, place: object, frame: int = 0) -> ImageRef:
    """The picture that a row names, by its words alone: the disk is not touched, so this is cheap for every row.

    Args:
        path_text: relative to ``root``, or absolute and inside it.
        root: the data root, absolute.
        place: row and column, for the message.
        frame: counts from 0.

    Raises:
        ImageError: the path is empty, or leaves ``root``. Symbolic links are followed when the picture is opened.
    """
    if not isinstance(path_text, str) or not path_text.strip() or "\0" in path_text:
        rule, remedy = "an image path must be text that names a file", "Correct the path."
        raise ImageError("images.path_not_text", rule, place=place, value=path_text, remedy=remedy)
    folder = os.path.join(os.path.normpath(root), "")  # noqa: PTH118 (a Path costs ten times as much here)
    path = os.path.normpath(os.path.join(folder, path_text))  # noqa: PTH118
    if not path.startswith(folder) or path == folder:
        raise ImageError(*INSIDE, place=place, value=path_text, remedy=f"{SET_ROOT} It is {folder} now.")
    return ImageRef(Path(path), frame)


def stat_image(path: Path, roots: Sequence[str] = ()) -> os.stat_result:
    """What the file system says about a picture, after all links.

    Args:
        path: the picture.
        roots: real paths of the folders that it must be in; none: anywhere.

    Raises:
        ImageError: missing, unreadable, empty, no ordinary file, or outside ``roots`` once links are followed.
    """
    try:
        facts = path.stat()
        real = os.path.realpath(path, strict=True) if roots else ""
    except FileNotFoundError:
        rule, remedy = "the image must exist", f"{SET_ROOT} {REPAIR}"
        raise ImageError("images.missing", rule, place=path, remedy=remedy) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise broken(path, *NOT_READABLE, str(error)) from error
    if not stat.S_ISREG(facts.st_mode):
        raise broken(path, "images.not_regular_file", "an image must be a regular file")
    if not facts.st_size:
        raise broken(path, "images.file_empty", "an image must not be an empty file")
    if roots and not any(real.startswith(os.path.join(root, "")) for root in roots):  # noqa: PTH118
        link = "A symbolic link leads out of it. Set data.image_root to the folder that has the files themselves."
        raise ImageError(*INSIDE, place=path, value=real, remedy=link)
    return facts


def broken(path: Path, code: str, rule: str, value: object = NOTHING) -> ImageError:
    """Return the error for a file that cannot be read as an image, with its remedy."""
    return ImageError(code, rule, place=path, value=value, remedy=REPAIR)
