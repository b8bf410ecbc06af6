"""Images in the .zip of their rows. They are kept by content, and no path of the .zip is ever written.

A name must be equal to that of its file. Other ways to find a file, such as a missing suffix, need the extracted .zip.
"""

import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.formats.row_file import RowFile, blame, open_zip, row_file
from toolkit.data.json_stream import Record
from toolkit.errors import DataError
from toolkit.images.names import is_image_name, without_suffix

CACHED_PATHS = 1 << 16


def with_zipped_images(records: Iterator[Record], file: RowFile, images: EmbeddedImageStore) -> Iterator[Record]:
    """Yield records whose paths of images in the same .zip are replaced by their paths in ``images``.

    Paths are relative to the folder of the rows in the .zip, or to its top.

    Raises:
        DataError: The .zip is damaged or unsafe, or the name of an image is not equal to that of its file.
    """
    folder = posixpath.dirname(_with_slashes(file.member))
    with open_zip(file.path) as archive:
        names = {_with_slashes(name): name for name in archive.namelist() if is_image_name(name)}
        similar = _by_similar_name(names, folder)

        @lru_cache(CACHED_PATHS)
        def kept(path: str) -> str | None:
            inside = (posixpath.normpath(posixpath.join(start, path)) for start in (folder, ""))
            name = next((one for one in inside if one in names), None)
            if name is None:
                return None
            with blame(f"{file.path}, an image in it"):
                return images.keep(archive.read(names[name]))

        def replaced(value: Any, column: str = "") -> Any:
            if isinstance(value, str):
                path = kept(value) if is_image_name(value) else None
                if path is None and _meant(value, column, similar):
                    rule = "the name of an image must be equal to that of its file in the .zip, which has a similar one"
                    remedy = "Correct the name, or extract the .zip and name its file of rows instead."
                    raise DataError(
                        "data.archive_image_name",
                        rule,
                        place=file.place,
                        value=f"text of {len(value)} characters",
                        remedy=remedy,
                    )
                return path or value
            if isinstance(value, list):
                return [replaced(one, column) for one in value]
            if isinstance(value, dict):
                return {key: replaced(one, str(key)) for key, one in value.items()}
            return value

        for name, row, text in records:
            yield (name, replaced(row), None) if names else (name, row, text)


def with_images_of(path: Path, records: Iterator[Record], images: EmbeddedImageStore) -> Iterator[Record]:
    """Yield the records of a file, with its images if it is a .zip."""
    file = row_file(path) if path.suffix.lower() == ".zip" else None
    return records if file is None else with_zipped_images(records, file, images)


_IMAGES = frozenset({"image", "images", "imagename", "imagepath", "imageid", "filename", "imgname"})
"""Columns whose values can be names of images without a suffix."""


def _by_similar_name(names: Iterable[str], folder: str) -> dict[str, str]:
    """Return a name as ``_similar`` writes it -> name, and without its suffix, then ``/`` -> name."""
    found: dict[str, str] = {}
    for name in sorted(names):
        starts = ("", f"{folder}/") if folder else ("",)
        for short in (_similar(name.removeprefix(start)) for start in starts):
            found.setdefault(short, name)
            found.setdefault(f"{without_suffix(short)}/", name)
    return found


def _meant(value: str, column: str, similar: Mapping[str, str]) -> str | None:
    """Return the file that the name of an image means without being equal to it, or None."""
    key = _similar(value)
    if column.replace("_", "").lower() in _IMAGES and (found := similar.get(f"{key}/")):
        return found
    if not is_image_name(value):
        return None
    parts = [_similar(part.strip()) for part in re.split(r"[;|,]", value)]
    return similar.get(key) or (similar[parts[0]] if all(part in similar for part in parts) else None)


def _similar(path: str) -> str:
    """Return a path without differences of case, Unicode normalisation and separators of folders."""
    plain = unicodedata.normalize("NFC", unicodedata.normalize("NFC", _with_slashes(path)).casefold())
    return posixpath.normpath(plain)


def _with_slashes(path: str) -> str:
    """Return a path with slashes between folders. Some programs on Windows write backslashes into a .zip."""
    return path.replace("\\", "/")
