"""A synthetic dataset of rated images, in the layout of a real one: images, ratings.csv, and truth.csv beside them.

Simulated experts of three levels rate the images. They know how good an image is by a closed formula, and err the more
the lower their level is. The dataset tests the software and shows nothing about clinical quality.
"""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from toolkit.errors import DataError
from toolkit.imagegen.ratings.load import OPTIONAL, REQUIRED
from toolkit.imagegen.ratings.synthetic_images import SyntheticImage, synthetic_image
from toolkit.recipe.imagegen import Imagegen

Oracle = Callable[[Sequence[SyntheticImage]], Sequence[float]]
"""Scores images in [0, 1]: the ratings of experts without errors."""

RATINGS_FILE = "ratings.csv"
TRUTH_FILE = "truth.csv"
"""Ground truth of each image. No model is trained on it."""
TRUTH_COLUMNS = ("image_path", "finding", "degradation", "severity", "quality", "agrees", "score")

IMAGES_PER_PATIENT = 2

_EXPERT_STREAM = 1
"""Part of the seed of the experts' errors, which are independent of the images."""


@dataclass(frozen=True, slots=True)
class Expert:
    """A simulated expert: id, level, and standard deviation of the errors on a scale from 0 to 1."""

    rater: str
    level: int
    error: float


EXPERTS = tuple(
    Expert(f"expert{2 * (level - 1) + number}", level, error)
    for level, error in ((1, 0.35), (2, 0.20), (3, 0.08))
    for number in (1, 2)
)


def closed_form_scores(images: Sequence[SyntheticImage]) -> Sequence[float]:
    """Return each image's score by the formula of ``SyntheticImage.score``."""
    return [image.score for image in images]


def rate(scores: Sequence[float], levels: int, raters: int, seed: int) -> list[tuple[tuple[Expert, int], ...]]:
    """Return the ratings of images by simulated experts.

    An expert's rating is the score plus a normal error, cut into equally wide levels.

    Args:
        scores: each image's score in [0, 1].
        levels: number of rating levels.
        raters: experts who rate each image, drawn without replacement.
        seed: the seed of the experts' errors. An image's ratings depend on the seed, its position and its score only.

    Returns:
        For each image, pairs of an expert and the level of the rating, from 0.
    """
    rated = []
    for index, score in enumerate(scores):
        rng = np.random.default_rng([seed, _EXPERT_STREAM, index])
        chosen = [EXPERTS[number] for number in rng.permutation(len(EXPERTS))[:raters]]
        rated.append(tuple((expert, _level(score + rng.normal(0, expert.error), levels)) for expert in chosen))
    return rated


def write_synthetic(folder: Path, section: Imagegen, seed: int, oracle: Oracle = closed_form_scores) -> Path:
    """Write a synthetic dataset and return its ratings file.

    ``folder`` gets ``images/*.png``, ``ratings.csv`` and ``truth.csv``. Written again, the files are the same to the
    byte. ``ratings.csv`` is written last, so that its presence means a complete dataset.

    Args:
        folder: where to write.
        section: size, rating range, and the table [imagegen.synthetic].
        seed: the seed of images and experts.
        oracle: scores that the experts know.

    Raises:
        DataError: an image cannot be encoded.
        OSError: the folder cannot be written.
    """
    settings = section.synthetic
    if settings is None:
        raise DataError(
            "imagegen.synthetic_section_missing",
            "the recipe must have the section [imagegen.synthetic]",
            place="imagegen",
        )
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images = [synthetic_image(seed, index, section.size, settings.degraded) for index in range(settings.images)]
    names = [f"images/{index:06d}.png" for index in range(settings.images)]
    for name, image in zip(names, images, strict=True):
        _write_image(folder / name, image)
    _write_table(folder / TRUTH_FILE, [TRUTH_COLUMNS, *map(_truth, names, images)])
    ratings = rate(oracle(images), len(section.rating_range), settings.raters_per_image, seed)
    rows = list(_rating_rows(names, images, ratings, section.rating_range))
    return _write_table(folder / RATINGS_FILE, [(*REQUIRED, *OPTIONAL), *rows])


def _level(opinion: float, levels: int) -> int:
    return int(np.clip(np.floor(opinion * levels), 0, levels - 1))


def _rating_rows(
    names: Sequence[str],
    images: Sequence[SyntheticImage],
    ratings: Sequence[tuple[tuple[Expert, int], ...]],
    rating_range: Sequence[float],
) -> Iterator[tuple[object, ...]]:
    for index, (name, image, rated) in enumerate(zip(names, images, ratings, strict=True)):
        patient = f"patient{index // IMAGES_PER_PATIENT:05d}"
        for expert, level in rated:
            rating = f"{rating_range[level]:g}"
            yield name, rating, image.modality, expert.level, image.prompt, patient, expert.rater


def _truth(name: str, image: SyntheticImage) -> tuple[object, ...]:
    numbers = [f"{value:.6f}" for value in (image.severity, image.quality)]
    return name, image.finding, image.degradation, *numbers, int(image.agrees), f"{image.score:.6f}"


def _write_image(path: Path, image: SyntheticImage) -> None:
    done, encoded = cv2.imencode(".png", image.as_8_bit(), [cv2.IMWRITE_PNG_COMPRESSION, 6])
    if not done:
        raise DataError("imagegen.image_not_encodable", "a synthetic image must be encodable as PNG", place=path)
    _write(path, encoded.tobytes())


def _write_table(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    _write(path, text.getvalue().encode())
    return path


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    temporary.replace(path)
