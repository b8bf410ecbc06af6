"""Synthetic rows of the task: tiles of tissue, with the labels of NCT-CRC-HE."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from toolkit.data.task import Synthetic
from toolkit.recipe import SyntheticData
from toolkit.synthetic.files import write_image, write_json
from toolkit.synthetic.tissue import TISSUES, draw_tile

SPLITS = ("train", "validation", "test")


def write_tiles(folder: Path, synthetic: SyntheticData, seed: int) -> Mapping[str, Path]:
    """Write tiles as PNG, with every class equally often, and return the JSON file of each split that has rows."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files, first = {}, 0
    for split in SPLITS:
        numbers = range(first, first + getattr(synthetic, split))
        if numbers:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                rows = list(pool.map(lambda number: _write_tile(folder, number, synthetic.size, seed), numbers))
            files[split] = write_json(folder / f"{split}.json", dict(rows))
        first = numbers.stop
    return files


def _write_tile(folder: Path, number: int, size: int, seed: int) -> tuple[str, dict[str, str]]:
    code = tuple(TISSUES)[number % len(TISSUES)]
    name, file = f"tile{number:06d}", f"images/tile{number:06d}.png"
    pixels = draw_tile(code, size, np.random.default_rng([seed, number]))
    write_image(folder / file, pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return name, {"image": file, "label": code}


TILES = Synthetic(
    kind="tissue",
    description="tiles of stained tissue in nine classes",
    write=write_tiles,
    columns=frozenset({"image", "label"}),
    content="tissue",
)
