"""Synthetic rows of the task: dermoscopy-like images with no, one or two lesions, and the box of each."""

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count, dropwhile, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from toolkit.data.task import Synthetic
from toolkit.recipe import SPLITS, SyntheticData
from toolkit.scoring.regions import find_regions
from toolkit.synthetic.dermoscopy import draw_skin
from toolkit.synthetic.files import write_file, write_image
from toolkit.synthetic.lesions import Lesion, make_lesion

CLASSES: Mapping[str, str] = {"bcc": "basal cell carcinoma", "mel": "melanoma", "nv": "melanocytic nevus"}
"""Class of the drawing code -> label in the rows."""

EMPTY = 0.15
"""Fraction of images without a lesion."""


def write_boxes(folder: Path, synthetic: SyntheticData, seed: int) -> dict[str, Path]:
    """Write images and one JSON file of rows for each split. No patient is in two splits.

    Images are ``synthetic.size`` pixels wide and three quarters as high. Complete files are kept.
    """
    sizes = {split: getattr(synthetic, split) for split in SPLITS if getattr(synthetic, split)}
    size = (synthetic.size, synthetic.size * 3 // 4)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    numbers: Iterator[int] = count()
    files = {}
    for split, total in sizes.items():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            chosen = list(islice(numbers, total))
            rows = list(pool.map(lambda number: _write_image(images, number, size, seed), chosen))
        files[split] = write_file(folder / f"{split}.json", json.dumps(rows, indent=1).encode())
        numbers = _after_patient(numbers, chosen[-1], seed)
    return files


def _after_patient(numbers: Iterator[int], last: int, seed: int) -> Iterator[int]:
    """Skip the next lesions if they belong to the patient of the lesion ``last``."""
    patient = make_lesion(seed, last).patient.number
    return dropwhile(lambda number: make_lesion(seed, number).patient.number == patient, numbers)


def _write_image(folder: Path, number: int, size: tuple[int, int], seed: int) -> dict[str, Any]:
    """Write one image and return its row."""
    lesion = make_lesion(seed, number, dict.fromkeys(CLASSES, 1.0))
    rng = np.random.default_rng((seed, number))
    spots = () if rng.random() < EMPTY else lesion.spots
    image = draw_skin(spots, lesion.patient.tone, size, rng)
    file = folder / f"{number:06d}.png"
    write_image(file, image.pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    boxes = [[int(edge) for edge in region.box] for region in find_regions(image.mask > 0)[0]]
    return {
        "id": f"{number:06d}",
        "image": f"images/{file.name}",
        "width": size[0],
        "height": size[1],
        "boxes": boxes,
        "labels": [_label(lesion)] * len(boxes),
        "patient_id": f"P{lesion.patient.number}",
    }


def _label(lesion: Lesion) -> str:
    return CLASSES[lesion.dx]


SYNTHETIC_BOXES = Synthetic(
    kind="boxes",
    description="no, one or two skin lesions with their boxes",
    write=write_boxes,
    columns=frozenset({"id", "image", "width", "height", "boxes", "labels", "patient_id"}),
    min_size=96,
    content="lesions",
)
