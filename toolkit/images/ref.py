"""ImageRef: one image on disk, not yet opened."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image on disk, not yet opened.

    ``path`` is absolute and inside the data root. ``frame`` counts from 0 (multi-frame DICOM and multi-page TIFF).
    ``crop`` is x1, y1, x2, y2 in pixels of the upright image, x2 and y2 exclusive. None means the whole image.
    """

    path: Path
    frame: int = 0
    crop: tuple[int, int, int, int] | None = None

    @property
    def part(self) -> str:
        """Frame and crop as one word. Together with the path or the content it identifies the pixels."""
        return "_".join(map(str, (self.frame, *(self.crop or ()))))
