"""Synthetic lesions: as downloads of HAM10000 and of ISIC's archive, and as the rows that are prepared from one."""

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
QUALITY = 95


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
    return _write(
        folder, _HAM10000, make_photos(images, seed, frequencies), _arguments(images, seed, size, frequencies)
    )


def write_isic(
    folder: Path, images: int, seed: int, size: Size = SIZE, frequencies: Mapping[str, float] = FREQUENCIES
) -> dict[str, Path]:
    """Write the same synthetic images in the layout of the ISIC archive, with masks as in its 2018 challenge.

    ``folder`` gets ``{isic_id}.jpg``, ``ISIC2018_Task1_Training_GroundTruth/{isic_id}_segmentation.png`` (0 or 255)
    and, last, ``metadata.csv``. The arguments are those of ``write_ham10000``.

    Returns:
        ``images`` and ``masks`` (folders) and ``metadata`` (the CSV).

    Raises:
        DataError: As for ``write_ham10000``.
    """
    return _write(folder, _ISIC, make_photos(images, seed, frequencies), _arguments(images, seed, size, frequencies))


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A class in the terms of the ISIC archive, from general to specific."""

    benign_malignant: str
    levels: tuple[str, str, str]


DIAGNOSES: Mapping[str, Diagnosis] = {
    "akiec": Diagnosis(
        "indeterminate", ("Indeterminate", "Indeterminate epidermal proliferations", "Solar or actinic keratosis")
    ),
    "bcc": Diagnosis(
        "malignant",
        ("Malignant", "Malignant adnexal epithelial proliferations - Follicular", "Basal cell carcinoma"),
    ),
    "bkl": Diagnosis("benign", ("Benign", "Benign epidermal proliferations", "Seborrheic keratosis")),
    "df": Diagnosis("benign", ("Benign", "Benign soft tissue proliferations - Fibro-histiocytic", "Dermatofibroma")),
    "mel": Diagnosis(
        "malignant", ("Malignant", "Malignant melanocytic proliferations (Melanoma)", "Melanoma Invasive")
    ),
    "nv": Diagnosis("benign", ("Benign", "Benign melanocytic proliferations", "Nevus")),
    "vasc": Diagnosis("benign", ("Benign", "Benign soft tissue proliferations - Vascular", "Hemangioma")),
}

ANATOM_SITES: Mapping[str, str] = {
    "abdomen": "anterior torso",
    "back": "posterior torso",
    "chest": "anterior torso",
    "face": "head/neck",
    "foot": "palms/soles",
    "lower extremity": "lower extremity",
    "neck": "head/neck",
    "trunk": "anterior torso",
    "upper extremity": "upper extremity",
}
"""HAM10000's localization -> the archive's anatom_site_general."""


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


def isic_row(photo: Photo) -> dict[str, object]:
    """Return the row of the archive's metadata.csv. Unknown values are None, which is written as blank."""
    lesion, patient = photo.lesion, photo.lesion.patient
    diagnosis = DIAGNOSES[lesion.dx]
    return {
        "isic_id": photo.name,
        "attribution": "Synthetic image",
        "copyright_license": "CC-0",
        "age_approx": patient.age,
        "anatom_site_general": ANATOM_SITES[lesion.site] if lesion.site else None,
        "benign_malignant": diagnosis.benign_malignant,
        **{f"diagnosis_{number}": text for number, text in enumerate(diagnosis.levels, start=1)},
        "image_type": "dermoscopic",
        "sex": patient.sex,
        "patient_id": f"IP_{patient.number:07d}",
        "lesion_id": f"IL_{lesion.number:07d}",
    }


def write_lesions(folder: Path, synthetic: SyntheticData, seed: int) -> dict[str, Path]:
    """Write images, masks and rows, and return the JSON file of each split that has rows.

    The split is by lesion, so split sizes only approximate the requested numbers of images. Images are
    ``synthetic.size`` pixels wide and three quarters as high.
    """
    total = synthetic.train + synthetic.validation + synthetic.test
    written = write_ham10000(folder, total, seed, (synthetic.size, synthetic.size * 3 // 4))
    fractions = {"validation": synthetic.validation / total, "test": synthetic.test / total}
    request = PrepareRequest(folder, seed, fractions["validation"], fractions["test"], workers=1)
    prepare_ham10000(
        [written["images_part_1"], written["images_part_2"]], written["masks"], written["metadata"], request
    )
    files = {split: folder / f"{split}.json" for split in ("train", "validation", "test")}
    return {split: file for split, file in files.items() if file.is_file()}


@dataclass(frozen=True, slots=True)
class _Layout:
    """The file layout and metadata row of a dataset."""

    name: str
    places: Mapping[str, str]
    """Name in the result -> folder or file below the output folder."""
    image: Callable[[int], str]
    """Image number -> its folder."""
    row: Callable[[Photo], dict[str, object]]

    def files(self, folder: Path, number: int) -> tuple[Path, Path]:
        """Return the files of image and mask."""
        name = name_of(number)
        return (
            folder / self.image(number) / f"{name}.jpg",
            folder / self.places["masks"] / f"{name}_segmentation.png",
        )


_HAM10000 = _Layout(
    "ham10000",
    {
        "images_part_1": "HAM10000_images_part_1",
        "images_part_2": "HAM10000_images_part_2",
        "masks": "HAM10000_segmentations_lesion",
        "metadata": "HAM10000_metadata.csv",
    },
    # Alternate, so that an image's folder does not depend on the number of images.
    lambda number: f"HAM10000_images_part_{1 + number % 2}",
    ham10000_row,
)
_ISIC = _Layout(
    "isic",
    {"images": ".", "masks": "ISIC2018_Task1_Training_GroundTruth", "metadata": "metadata.csv"},
    lambda number: ".",
    isic_row,
)

Arguments = dict[str, Any]


def _arguments(images: int, seed: int, size: Size, frequencies: Mapping[str, float]) -> Arguments:
    if min(size) < MIN_SIDE:
        rule = f"sides must be at least {MIN_SIDE} pixels"
        raise DataError("synthetic.size_too_small", rule, place="size", value=size, remedy="Raise it.")
    return {
        "images": images,
        "seed": seed,
        "size": list(size),
        "frequencies": dict(sorted(frequencies.items())),
        "drawing": DRAWING,
    }


def _write(folder: Path, layout: _Layout, photos: list[Photo], arguments: Arguments) -> dict[str, Path]:
    paths = {name: folder / place for name, place in layout.places.items()}
    _begin(folder, layout, {"layout": layout.name, **arguments})
    for name, path in paths.items():
        if name != "metadata":
            path.mkdir(parents=True, exist_ok=True)
    size = arguments["size"]

    def draw(photo: Photo) -> None:
        image_file, mask_file = layout.files(folder, photo.number)
        if image_file.is_file() and mask_file.is_file():
            return
        image = photo.draw((size[0], size[1]))
        write_image(image_file, image.pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        write_image(mask_file, image.mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(draw, photos):
            pass
    write_csv(paths["metadata"], [layout.row(photo) for photo in photos])
    return paths


def _begin(folder: Path, layout: _Layout, arguments: Arguments) -> None:
    """Write the marker, after removing files of earlier calls that this call would not write."""
    marker, metadata = folder / MARKER, folder / layout.places["metadata"]
    if marker.is_file():
        stored = _read(marker, layout)
        same = {**stored, "images": None} == {**arguments, "images": None}
        if stored != arguments:
            metadata.unlink(missing_ok=True)
        for number in range(arguments["images"] if same else 0, stored["images"]):
            for file in layout.files(folder, number):
                file.unlink(missing_ok=True)
    elif found := [place for place in layout.places.values() if place != "." and (folder / place).exists()]:
        raise _other_data(folder, f"{found[0]}, but no {MARKER}")
    folder.mkdir(parents=True, exist_ok=True)
    write_file(marker, json.dumps(arguments, indent=1).encode())


def _read(marker: Path, layout: _Layout) -> Arguments:
    try:
        stored = json.loads(marker.read_bytes())
    except ValueError as error:
        raise _other_data(marker.parent, f"a {MARKER} that is no JSON") from error
    if not isinstance(stored, dict) or stored.get("layout") != layout.name or not isinstance(stored.get("images"), int):
        raise _other_data(marker.parent, f"a {MARKER} of something else than {layout.name}")
    return stored


def _other_data(folder: Path, found: str) -> DataError:
    rule = "the folder must be empty or have synthetic data of this layout"
    return DataError("synthetic.folder_of_other_data", rule, place=folder, value=found, remedy="Name another folder.")


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
