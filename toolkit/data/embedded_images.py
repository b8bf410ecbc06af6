"""Images that a table contains as bytes, kept as files named by their content."""

import hashlib
import os
from pathlib import Path

_MAGIC = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)


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
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f"{file.name}.{os.getpid()}")
            temporary.write_bytes(content)
            temporary.replace(file)
        return inside


class UnwrittenImages(EmbeddedImageStore):
    """A store that writes nothing, for a look at the first records."""

    def __init__(self) -> None:
        super().__init__(Path())

    def keep(self, content: bytes) -> str:
        """Return the path that the image would have."""
        return name_of_content(content)


def name_of_content(content: bytes) -> str:
    """Return the path of an image in a store. Equal content has the same name in every source."""
    name = hashlib.blake2b(content, digest_size=20).hexdigest()
    return f"{name[:2]}/{name}{_suffix(content)}"


def _suffix(content: bytes) -> str:
    if content[128:132] == b"DICM":
        return ".dcm"
    return next((suffix for magic, suffix in _MAGIC if content.startswith(magic)), "")
