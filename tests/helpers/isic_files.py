"""Synthetic lesions in the layout of the ISIC archive, with masks as in its challenge of 2018."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2

from toolkit.synthetic.files import write_csv, write_image
from toolkit.synthetic.lesions import FREQUENCIES, Photo, make_photos

SIZE = (300, 225)


def write_isic(folder: Path, images: int, seed: int, frequencies: Mapping[str, float] = FREQUENCIES) -> dict[str, Path]:
    """Write images, masks and ``metadata.csv``. The images are those of ``write_ham10000`` for the same seed."""
    masks = folder / "ISIC2018_Task1_Training_GroundTruth"
    masks.mkdir(parents=True)
    photos = make_photos(images, seed, frequencies)
    for photo in photos:
        image = photo.draw(SIZE)
        write_image(folder / f"{photo.name}.jpg", image.pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        write_image(masks / f"{photo.name}_segmentation.png", image.mask, [])
    metadata = write_csv(folder / "metadata.csv", [isic_row(photo) for photo in photos])
    return {"images": folder, "masks": masks, "metadata": metadata}


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
