"""Synthetic lesions, their patients and photographs, determined by a seed and a number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from toolkit.errors import DataError
from toolkit.synthetic import Rng
from toolkit.synthetic.dermoscopy import STYLES, LesionImage, Size, Spot, draw_skin

FREQUENCIES: Mapping[str, float] = {
    "nv": 0.34, "mel": 0.17, "bkl": 0.16, "bcc": 0.12, "akiec": 0.09, "vasc": 0.06, "df": 0.06,
}  # fmt: skip
"""Class -> fraction of the lesions, in the order of HAM10000 but less imbalanced."""

TWO = 0.15
"""Fraction of lesions with a second lesion of their class beside them in every photograph."""
AREA_FRACTIONS = (0.04, 0.25)
AREA_FRACTIONS_OF_TWO = (0.04, 0.09)
"""Smallest and largest area of a lesion as a fraction of the image, before an edge cuts it."""
PHOTOS = (0.5, 0.3, 0.2)
"""Fractions of lesions with one, two and three photographs."""
BLANK = 0.03
"""Fraction of patients without an age, of patients without a sex, and of lesions without a site."""
SITES = ("abdomen", "back", "chest", "face", "foot", "lower extremity", "neck", "trunk", "upper extremity")
"""Anatomical sites in the terms of HAM10000."""
DX_TYPES: Mapping[str, tuple[str, ...]] = {
    "nv": ("follow_up", "histo", "consensus"),
    "bkl": ("histo", "consensus", "confocal"),
    "vasc": ("histo", "consensus"),
    "df": ("histo", "consensus"),
}
"""Class -> how HAM10000 confirms it. All other classes are confirmed by histology."""
DATASETS = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
FIRST_NAME = 24306

_PATIENT, _LESION, _PHOTO, _LOOKS = range(1, 5)
"""Each kind of object has its own random stream."""


@dataclass(frozen=True, slots=True)
class Patient:
    """Age in years and sex (male, female), or None if unknown. The skin tone is from 0 (pale) to 1 (tanned)."""

    number: int
    age: int | None
    sex: str | None
    tone: float


@dataclass(frozen=True, slots=True)
class Lesion:
    """Properties of a lesion, equal in all of its photographs. ``spots`` has one lesion, or two beside each other."""

    number: int
    patient: Patient
    dx: str
    dx_type: str
    site: str | None
    dataset: str
    spots: tuple[Spot, ...]


@dataclass(frozen=True, slots=True)
class Photo:
    """One photograph of a lesion. ``number`` counts all photographs, ``seed`` decides position, rotation and light."""

    number: int
    lesion: Lesion
    seed: tuple[int, ...]

    @property
    def name(self) -> str:
        """The image's name in the dataset."""
        return name_of(self.number)

    def draw(self, size: Size) -> LesionImage:
        """Return image and mask. The result is deterministic."""
        return draw_skin(self.lesion.spots, self.lesion.patient.tone, size, np.random.default_rng(self.seed))


def make_photos(images: int, seed: int, frequencies: Mapping[str, float] = FREQUENCIES) -> list[Photo]:
    """Return ``images`` photographs, grouped by lesion. A smaller number with the same seed gives a prefix.

    Raises:
        DataError: Fewer than one image, a negative seed, an unknown class, or invalid frequencies.
    """
    _check(images, seed, frequencies)
    pairs = (
        (lesion, (seed, _PHOTO, lesion.number, again))
        for lesion in (make_lesion(seed, number, frequencies) for number in count())
        for again in range(_photos_of(seed, lesion.number))
    )
    return [Photo(number, *pair) for number, pair in enumerate(islice(pairs, images))]


def make_patient(seed: int, number: int) -> Patient:
    """Return the patient with this number. Ages are multiples of 5, as in HAM10000."""
    rng = np.random.default_rng((seed, _PATIENT, number))
    age, sex, tone = 5 * int(rng.integers(4, 18)), _one_of(("male", "female"), rng), float(rng.uniform())
    return Patient(number, None if rng.random() < BLANK else age, None if rng.random() < BLANK else sex, tone)


def make_lesion(seed: int, number: int, frequencies: Mapping[str, float] = FREQUENCIES) -> Lesion:
    """Return the lesion with this number. Every second patient has two. Only the image reveals the class."""
    rng = np.random.default_rng((seed, _LESION, number))
    dx = _pick(frequencies, rng)
    two = rng.random() < TWO
    low, high = np.log(AREA_FRACTIONS_OF_TWO if two else AREA_FRACTIONS)
    fractions = np.exp(rng.uniform(low, high, 2))[: 2 if two else 1]
    spots = tuple(Spot(dx, float(fraction), (seed, _LOOKS, number, i)) for i, fraction in enumerate(fractions))
    return Lesion(
        number=number,
        patient=make_patient(seed, number * 2 // 3),
        dx=dx,
        dx_type=_one_of(DX_TYPES.get(dx, ("histo",)), rng),
        site=None if rng.random() < BLANK else _one_of(SITES, rng),
        dataset=_one_of(DATASETS, rng),
        spots=spots,
    )


def _photos_of(seed: int, number: int) -> int:
    # This number follows those of the photographs, so that no photograph has the same stream.
    rng = np.random.default_rng((seed, _PHOTO, number, len(PHOTOS)))
    return 1 + int(rng.choice(len(PHOTOS), p=PHOTOS))


def _pick(frequencies: Mapping[str, float], rng: Rng) -> str:
    """Return a class, independent of the order of the frequencies."""
    names = sorted(frequencies)
    weights = np.array([frequencies[name] for name in names])
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _one_of(texts: Sequence[str], rng: Rng) -> str:
    return texts[int(rng.integers(len(texts)))]


def _check(images: int, seed: int, frequencies: Mapping[str, float]) -> None:
    if images < 1:
        raise DataError("synthetic.no_images", "must be at least 1", place="images", value=images)
    if seed < 0:
        raise DataError("synthetic.seed_negative", "must be at least 0", place="seed", value=seed)
    if unknown := sorted(frequencies.keys() - STYLES.keys()):
        rule, remedy = f"must name classes among {', '.join(STYLES)}", "Correct the names."
        raise DataError("synthetic.class_unknown", rule, place="frequencies", value=", ".join(unknown), remedy=remedy)
    values = list(frequencies.values())
    if not all(0 <= value < float("inf") for value in values) or not sum(values) > 0:
        rule, value = "must be finite and at least 0, with one above 0", dict(frequencies)
        raise DataError("synthetic.frequencies_out_of_range", rule, place="frequencies", value=value)


def name_of(number: int) -> str:
    """Return the name of the image with this number, counted from 0."""
    return f"ISIC_{FIRST_NAME + number:07d}"
