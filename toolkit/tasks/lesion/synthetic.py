"""Synthetic lesions: as a download of HAM10000, and as the rows that are prepared from it."""

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2

from toolkit.data.task import Synthetic
from toolkit.errors import DataError
from toolkit.prepare.ham10000 import prepare_ham10000
from toolkit.prepare.request import PrepareRequest
from toolkit.recipe import SyntheticData
from toolkit.synthetic.dermoscopy import Size
from toolkit.synthetic.files import write_csv, write_file, write_image
from toolkit.synthetic.lesions import FREQUENCIES, Photo, make_photos, name_of

SIZE: Size = (300, 225)
MIN_SIDE = 64
MARKER = "synthetic.json"
"""File with the arguments of the last call, from which a later call knows which files are still valid."""
DRAWING = 1
"""Version of the drawing code. A new version redraws existing images."""
JPEG_QUALITY = 95

PLACES: Mapping[str, str] = {
    "images_part_1": "HAM10000_images_part_1",
    "images_part_2": "HAM10000_images_part_2",
    "masks": "HAM10000_segmentations_lesion",
    "metadata": "HAM10000_metadata.csv",
}
"""Name in the result of ``write_ham10000`` -> folder or file below the output folder."""


def write_lesions(folder: Path, synthetic: SyntheticData, seed: int) -> dict[str, Path]:
    """Write images, masks and rows, and return the JSON file of each split that has rows.

    The split is by lesion, so split sizes only approximate the requested numbers of images. Images are
    ``synthetic.size`` pixels wide and three quarters as high.
    """
    total = synthetic.train + synthetic.validation + synthetic.test
    written = write_ham10000(folder, total, seed, (synthetic.size, synthetic.size * 3 // 4))
    request = PrepareRequest(folder, seed, synthetic.validation / total, synthetic.test / total, workers=1, force=True)
    prepare_ham10000(
        [written["images_part_1"], written["images_part_2"]], written["masks"], written["metadata"], request
    )
    files = {split: folder / f"{split}.json" for split in ("train", "validation", "test")}
    return {split: file for split, file in files.items() if file.is_file()}


def write_ham10000(
    folder: Path, images: int, seed: int, size: Size = SIZE, frequencies: Mapping[str, float] = FREQUENCIES
) -> dict[str, Path]:
    """Write synthetic images with masks and metadata in the layout of HAM10000 (Tschandl et al. 2018).

    ``folder`` gets ``HAM10000_images_part_1`` and ``_part_2`` (JPEG, and images of a lesion can be in both),
    ``HAM10000_segmentations_lesion/{image_id}_segmentation.png`` (0 or 255) and, last, ``HAM10000_metadata.csv``.
    Existing complete files are kept. Images from a call with other arguments are replaced. Equal arguments give equal
    bytes with the same versions of NumPy and OpenCV.

    Args:
        folder: Output folder, created if it is missing.
        images: Number of images. A smaller dataset with the same seed is a prefix of a larger one.
        seed: Seed of everything, 0 or more.
        size: Width and height of the images in pixels.
        frequencies: Class -> weight among the lesions. Other classes do not occur.

    Returns:
        ``images_part_1``, ``images_part_2`` and ``masks`` (folders) and ``metadata`` (the CSV).

    Raises:
        DataError: An argument is out of range, or the folder has other data of this layout.
    """
    photos = make_photos(images, seed, frequencies)
    if min(size) < MIN_SIDE:
        rule = f"sides must be at least {MIN_SIDE} pixels"
        raise DataError("synthetic.size_too_small", rule, place="size", value=size, remedy="Raise it.")
    drawn = {"seed": seed, "size": list(size), "frequencies": dict(sorted(frequencies.items())), "drawing": DRAWING}
    _remove_outdated(folder, images, drawn)
    paths = {name: folder / place for name, place in PLACES.items()}
    for path in (paths["images_part_1"], paths["images_part_2"], paths["masks"]):
        path.mkdir(parents=True, exist_ok=True)
    write_file(folder / MARKER, json.dumps({"images": images, **drawn}, indent=1).encode())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda photo: _write_photo(folder, photo, size), photos))
    write_csv(paths["metadata"], [ham10000_row(photo) for photo in photos])
    return paths


def ham10000_row(photo: Photo) -> dict[str, object]:
    """Return the row of HAM10000_metadata.csv. An unknown age is blank, an unknown sex or site is ``unknown``."""
    lesion, patient = photo.lesion, photo.lesion.patient
    return {
        "lesion_id": f"HAM_{lesion.number:07d}",
        "image_id": photo.name,
        "dx": lesion.dx,
        "dx_type": lesion.dx_type,
        "age": "" if patient.age is None else f"{patient.age:.1f}",
        "sex": patient.sex or "unknown",
        "localization": lesion.site or "unknown",
        "dataset": lesion.dataset,
    }


def _remove_outdated(folder: Path, images: int, drawn: Mapping[str, object]) -> None:
    """Remove the files of an earlier call that a call for ``images`` images with these arguments would not write."""
    if not (folder / MARKER).is_file():
        if found := [place for place in PLACES.values() if (folder / place).exists()]:
            raise _other_data(folder, f"{found[0]}, but no {MARKER}")
        return
    stored_images, stored = _read_marker(folder)
    if stored == drawn and stored_images == images:
        return
    (folder / PLACES["metadata"]).unlink(missing_ok=True)
    for number in range(images if stored == drawn else 0, stored_images):
        for file in _files(folder, number):
            file.unlink(missing_ok=True)


def _read_marker(folder: Path) -> tuple[int, dict[str, object]]:
    """Return the number of images, and the arguments that decide how they look."""
    try:
        stored = json.loads((folder / MARKER).read_bytes())
    except ValueError as error:
        raise _other_data(folder, f"a {MARKER} that is not JSON") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("images"), int):
        raise _other_data(folder, f"a {MARKER} without a number of images")
    return stored.pop("images"), stored


def _other_data(folder: Path, found: str) -> DataError:
    rule = "the folder must be empty or have synthetic data of this layout"
    return DataError("synthetic.folder_of_other_data", rule, place=folder, value=found, remedy="Name another folder.")


def _write_photo(folder: Path, photo: Photo, size: Size) -> None:
    image_file, mask_file = _files(folder, photo.number)
    if image_file.is_file() and mask_file.is_file():
        return
    image = photo.draw(size)
    write_image(image_file, image.pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    write_image(mask_file, image.mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    """Return the files of image and mask.

    The two folders of images alternate, so that the folder of an image does not depend on the number of images.
    """
    name, part = name_of(number), PLACES[f"images_part_{1 + number % 2}"]
    return folder / part / f"{name}.jpg", folder / PLACES["masks"] / f"{name}_segmentation.png"


LESIONS = Synthetic(
    kind="lesion",
    description="skin lesions with masks",
    write=write_lesions,
    columns=frozenset(
        {
            "age",
            "area_fraction",
            "bbox",
            "boxes",
            "dataset",
            "dx",
            "dx_type",
            "height",
            "image",
            "image_id",
            "lesion_id",
            "localization",
            "mask",
            "mask_available",
            "polygons",
            "sex",
            "spatial_description",
            "split",
            "width",
        }
    ),
    min_size=96,
    content="lesions",
)
