"""Paths of pictures: inside the data root, ordinary files, and the words for what is wrong with one."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from toolkit.errors import ImageError
from toolkit.sample import ImageRef

REPAIR = 'Repair or replace the file, or set images.unreadable to "skip" or "placeholder".'
INSIDE = "a picture's path must stay inside the data root"
SET_ROOT = "Set [data] image_root to the folder that holds the pictures."


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
        raise ImageError("a picture's path must be a text that names a file", place=place, value=path_text)
    folder = os.path.join(os.path.normpath(root), "")  # noqa: PTH118 (a Path costs ten times as much here)
    path = os.path.normpath(os.path.join(folder, path_text))  # noqa: PTH118
    if not path.startswith(folder) or path == folder:
        raise ImageError(INSIDE, place=place, value=path_text, remedy=f"{SET_ROOT} It is {folder} now.")
    return ImageRef(Path(path), frame)


def file_facts(path: Path, roots: Sequence[str] = ()) -> os.stat_result:
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
        raise ImageError("the picture must exist", place=path, remedy=f"{SET_ROOT} {REPAIR}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise broken(path, f"the picture must be readable ({error})") from error
    if not stat.S_ISREG(facts.st_mode):
        raise broken(path, "a picture must be an ordinary file")
    if not facts.st_size:
        raise broken(path, "a picture must not be an empty file")
    if roots and not any(real.startswith(os.path.join(root, "")) for root in roots):  # noqa: PTH118
        link = "A symbolic link leads out of it: set [data] image_root to the folder that holds the files themselves."
        raise ImageError(INSIDE, place=path, value=real, remedy=link)
    return facts


def broken(path: Path, rule: str) -> ImageError:
    """The error for a file that cannot be read as a picture, with what to do about it."""
    return ImageError(rule, place=path, remedy=REPAIR)
