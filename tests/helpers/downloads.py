"""Small downloads in the layouts of HAM10000 and ISIC, written by tests."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from toolkit.prepare import PrepareRequest, PrepareResult, prepare_ham10000

COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset")


class Download:
    """A download of HAM10000 with images of 60 x 45, which a test adds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, str]] = []
        self.images, self.masks, self.out = folder / "images", folder / "masks", folder / "out"
        self.images.mkdir()
        self.masks.mkdir()

    def add(self, name: str, dx: str = "nv", mask: np.ndarray | None = None, **cells: str) -> None:
        """Add a row with its image, and its mask if one is given."""
        known = {"lesion_id": f"HAM_{name}", "image_id": name, "dx": dx, "dx_type": "histo", "age": "50.0"}
        self.rows.append({**known, "sex": "male", "localization": "back", "dataset": "made", **cells})
        cv2.imwrite(str(self.images / f"{name}.jpg"), np.full((45, 60, 3), 150, np.uint8))
        if mask is not None:
            cv2.imwrite(str(self.masks / f"{name}_segmentation.png"), mask)

    def metadata(self) -> Path:
        file = self.folder / "metadata.csv"
        with file.open("w", encoding="utf-8", newline="") as stream:
            table = csv.DictWriter(stream, COLUMNS)
            table.writeheader()
            table.writerows(self.rows)
        return file

    def prepare(self, **options: Any) -> PrepareResult:
        return prepare_ham10000([self.images], self.masks, self.metadata(), PrepareRequest(self.out, **options))

    def written(self) -> dict[str, dict[str, Any]]:
        return {row["image_id"]: row for row in json.loads((self.out / "ham10000_with_spatial_data.json").read_text())}


def box_mask(*boxes: Sequence[int], size: tuple[int, int] = (60, 45), value: int = 255) -> np.ndarray:
    mask = np.zeros(size[::-1], np.uint8)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = value
    return mask


def note(prepared: PrepareResult, code: str) -> int:
    """Return the total count of the notes with this code. 0 without one."""
    return sum(note.count for note in prepared.notes if note.code == code)


def isic(folder: Path, images: Sequence[str], masks: Sequence[str] = (), **tables: str) -> Path:
    """Return a download in nested folders. Each mask is one box in the upper left."""
    source = folder / "source"
    for name in ("Data/Training_Input", "Data/GroundTruth", "tables"):
        (source / name).mkdir(parents=True, exist_ok=True)
    for name in images:
        cv2.imwrite(str(source / "Data/Training_Input" / f"{name}.jpg"), np.full((45, 60, 3), 150, np.uint8))
    for name in masks:
        cv2.imwrite(str(source / "Data/GroundTruth" / f"{name}.png"), box_mask((3, 3, 15, 12)))
    for name, text in tables.items():
        (source / "tables" / f"{name}.csv").write_text(text)
    return source
