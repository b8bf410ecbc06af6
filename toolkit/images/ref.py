"""ImageRef: one image on disk, not yet opened."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One picture on disk, not yet opened.

    ``path`` is absolute and inside the data root; ``frame`` counts from 0 (multi-frame DICOM and multi-page TIFF).
    ``crop`` is the part that is shown: x1, y1, x2, y2 in pixels of the upright picture, x2 and y2 exclusive; None: all.
    """

    path: Path
    frame: int = 0
    crop: tuple[int, int, int, int] | None = None

    @property
    def part(self) -> str:
        """Frame and crop as one word: with the path or the content it names what is shown."""
        return "_".join(map(str, (self.frame, *(self.crop or ()))))
