"""Ratings for tests of image generation: made in memory, or as files."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from toolkit.imagegen.ratings.load import RatedImage, Rating, Ratings
from toolkit.images.ref import ImageRef

COLUMNS = ("image_path", "rating", "modality", "expert_level", "prompt")


def rated(
    name: str, levels: Sequence[int], modality: str = "CT", experts: Sequence[int] = (), patient: str = ""
) -> RatedImage:
    """An image with a rating of each level, by experts of these levels (default: all of level 3)."""
    experts = experts or [3] * len(levels)
    ratings = tuple(Rating(level, expert) for level, expert in zip(levels, experts, strict=True))
    return RatedImage(name, ImageRef(Path("/images") / name), modality, f"{modality}: a prompt", ratings, patient)


def ratings_of(images: Sequence[RatedImage], levels: int = 3) -> Ratings:
    return Ratings(tuple(images), tuple(range(1, levels + 1)), sum(len(image.ratings) for image in images))


def write_images(folder: Path, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 10 * number % 256, np.uint8)).save(path)


def write_csv(path: Path, rows: Sequence[Sequence[object]], columns: Sequence[str] = COLUMNS) -> str:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return str(path)
