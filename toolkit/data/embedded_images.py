"""Images that a table contains as bytes, kept as files named by their content."""

import hashlib
import os
import re
from pathlib import Path

from toolkit.errors import DataError
from toolkit.identifiers import open_private
from toolkit.runfolder.cache import make_cache_folder

_MAGIC = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)

_KEPT = re.compile(r"[0-9a-f]{2}/[0-9a-f]{40}(\.\w+)?")

_OTHERS = (b"GIF8", b"BM", b"RIFF", b"\x00\x00\x00\x0cjP", b"\x1f\x8b", b"\x5c\x01\x00\x00")
"""Starts of GIF, BMP, WebP, JPEG 2000, and of NIfTI with and without gzip."""


class EmbeddedImageStore:
    """A folder of images named by content hash. ``used`` says whether the source has embedded images."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.used = folder, False

    def keep(self, content: bytes) -> str:
        """Write an image and return its path in the folder. Equal content has the same name in every source."""
        self.used = True
        inside = name_of_content(content)
        file = self.folder / inside
        if not file.exists():
            try:
                make_cache_folder(file.parent)
                temporary = file.with_name(f"{file.name}.{os.getpid()}")
                with os.fdopen(open_private(temporary), "wb") as stream:
                    stream.write(content)
                temporary.replace(file)
            except OSError as error:
                raise not_writable(self.folder, error) from error
        return inside


class UnwrittenImages(EmbeddedImageStore):
    """A store that writes nothing, for a look at the first records."""

    def __init__(self) -> None:
        super().__init__(Path())

    def keep(self, content: bytes) -> str:
        """Return the path that the image would have."""
        return name_of_content(content)


def is_kept(path: str) -> bool:
    """Return whether a path is that of an image in a store."""
    return _KEPT.fullmatch(path) is not None


def not_writable(place: Path, error: OSError) -> DataError:
    """Return the error of a cache folder that cannot be written."""
    rule = "the folder of the row index must be writable and have space for a copy of the rows"
    remedy = "Set the environment variable TOOLKIT_CACHE to another folder."
    return DataError("data.index_not_writable", rule, place=place, value=str(error), remedy=remedy)


def is_image(content: bytes) -> bool:
    """Return whether bytes start like an image: PNG, JPEG, TIFF, GIF, BMP, WebP, JPEG 2000, DICOM or NIfTI."""
    return bool(_suffix(content)) or content.startswith(_OTHERS)


def name_of_content(content: bytes) -> str:
    """Return the path of an image in a store. Equal content has the same name in every source."""
    name = hashlib.blake2b(content, digest_size=20).hexdigest()
    return f"{name[:2]}/{name}{_suffix(content)}"


def _suffix(content: bytes) -> str:
    if content[128:132] == b"DICM":
        return ".dcm"
    return next((suffix for magic, suffix in _MAGIC if content.startswith(magic)), "")
