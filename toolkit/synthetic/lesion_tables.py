"""What the tables of HAM10000 and of ISIC's archive say about a photograph, in the words of each."""

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.synthetic.lesions import Photo


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A class in the words of ISIC's archive, from the least to the most exact."""

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
    """The row of HAM10000_metadata.csv: a blank age, and ``unknown`` for a sex or a place that is not known."""
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
    """The row of the archive's metadata.csv; what is not known is None, that is blank."""
    lesion, patient = photo.lesion, photo.lesion.patient
    diagnosis = DIAGNOSES[lesion.dx]
    return {
        "isic_id": photo.name,
        "attribution": "Generated for practice",
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
