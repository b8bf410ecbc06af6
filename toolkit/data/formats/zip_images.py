"""Images in the .zip of their rows. They are kept by content, and no path of the .zip is ever written."""

import posixpath
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.formats.row_file import RowFile, blame, open_zip
from toolkit.data.json_stream import Record
from toolkit.images.names import is_image_name

CACHED_PATHS = 1 << 16


def with_zipped_images(records: Iterator[Record], file: RowFile, images: EmbeddedImageStore) -> Iterator[Record]:
    """Yield records whose paths of images in the same .zip are replaced by their paths in ``images``.

    Paths are relative to the folder of the rows in the .zip, or to its top.

    Raises:
        DataError: The .zip is damaged or unsafe.
    """
    folder = posixpath.dirname(file.member)
    with open_zip(file.path) as archive:
        names = {name for name in archive.namelist() if is_image_name(name)}

        @lru_cache(CACHED_PATHS)
        def kept(path: str) -> str | None:
            inside = (posixpath.normpath(posixpath.join(start, path)) for start in (folder, ""))
            name = next((one for one in inside if one in names), None)
            if name is None:
                return None
            with blame(f"{file.path}: {name}"):
                return images.keep(archive.read(name))

        def replaced(value: Any) -> Any:
            if isinstance(value, str):
                return kept(value) or value if is_image_name(value) else value
            if isinstance(value, list):
                return [replaced(one) for one in value]
            if isinstance(value, dict):
                return {key: replaced(one) for key, one in value.items()}
            return value

        for name, row, text in records:
            yield (name, replaced(row), None) if names else (name, row, text)
