"""Synthetic chest radiographs as 16-bit PNG: patients, visible findings, drawing, and files."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from toolkit.recipe import SyntheticData
from toolkit.synthetic import Rng
from toolkit.synthetic.files import write_image, write_json

SIDES = ("right", "left")

ZONES = ("upper", "middle", "lower")

LOCATIONS = tuple(f"{side} {zone} zone" for side in SIDES for zone in ZONES)

INDICATIONS = ("Cough.", "Fever.", "Chest pain.", "Shortness of breath.", "Check-up before surgery.", "Weight loss.")

QUESTIONS_PER_IMAGE = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding: its name, its sentence in a report, and the locations where it can occur."""

    name: str
    description: str
    locations: tuple[str, ...]
    """Empty if the finding has no location of its own."""


FINDINGS = (
    Finding("No acute finding", "Both lungs are clear", ()),
    Finding("Cardiomegaly", "The heart is enlarged", ()),
    Finding("Pneumonia", "Patchy opacity in the {location}", LOCATIONS),
    Finding("Pulmonary nodule", "Round nodule in the {location}", LOCATIONS),
    Finding("Pleural effusion", "Fluid at the base of the {location} lung", SIDES),
    Finding("Pneumothorax", "Air without lung markings at the apex of the {location} lung", SIDES),
    Finding("Pacemaker", "Metal device over the {location} chest", SIDES),
)


@dataclass(frozen=True, slots=True)
class ChestCase:
    """One synthetic patient with one radiograph. ``location`` is empty if the finding has none."""

    id: str
    finding: Finding
    location: str
    sex: str
    age: int
    indication: str

    @property
    def description(self) -> str:
        """The sentence of the report, without its full stop."""
        return self.finding.description.format(location=self.location)

    @property
    def side(self) -> str:
        """``right``, ``left`` or empty."""
        return self.location.partition(" ")[0]


Records = list[tuple[str, dict[str, Any]]]
"""Pairs of id and record."""

MakeQuestions = Callable[[ChestCase, Rng], Records]
"""Makes ``QUESTIONS_PER_IMAGE`` questions about a case. The generator continues after the drawing."""

Light = NDArray[np.float32]
"""Shape (side, side), 0 to 1. A radiograph is bright where the body absorbs."""

LUNG_X = {"right": 0.30, "left": 0.70}
"""The patient's right is the image's left, as in clinical display. Fractions of the image's side."""

ZONE_Y = {"upper": 0.33, "middle": 0.50, "lower": 0.67}

LUNG_AXES = (0.155, 0.31)


def make_case(seed: int, index: int) -> tuple[ChestCase, Rng]:
    """Return the case with this number and the generator that draws its radiograph.

    The result is the same on every machine.
    """
    rng = np.random.default_rng([seed, index])
    finding = FINDINGS[rng.integers(len(FINDINGS))]
    location = finding.locations[rng.integers(len(finding.locations))] if finding.locations else ""
    case = ChestCase(
        id=f"radiograph{index:06d}",
        finding=finding,
        location=location,
        sex="FM"[rng.integers(2)],
        age=int(rng.integers(20, 90)),
        indication=INDICATIONS[rng.integers(len(INDICATIONS))],
    )
    return case, rng


def write_radiographs(
    folder: Path, synthetic: SyntheticData, seed: int, make_questions: MakeQuestions
) -> dict[str, Path]:
    """Write radiographs and questions, and return the JSON file of each split that has rows. See ``write_cases``."""

    def write_case(index: int) -> Records:
        case, rng = make_case(seed, index)
        light = draw_radiograph(case.finding.name, case.location, synthetic.size, rng)
        write_radiograph(folder / "images" / f"{case.id}.png", light, rng)
        return make_questions(case, rng)

    return write_cases(folder, synthetic, write_case, QUESTIONS_PER_IMAGE)


def write_cases(
    folder: Path, synthetic: SyntheticData, write_case: Callable[[int], Records], rows_per_case: int = 1
) -> dict[str, Path]:
    """Write the cases of each split, and return the JSON file of each split that has rows.

    Args:
        folder: an existing folder.
        synthetic: the numbers of rows.
        write_case: number of a case -> its records. It writes the images of the case.
        rows_per_case: number of records of a case.

    ``folder`` gets ``train.json``, ``validation.json``, ``test.json`` (object id -> record) and ``images/*.png``. A
    second call writes the same bytes. No case is in two splits. Each JSON file is written last and atomically.
    """
    counts = {"train": synthetic.train, "validation": synthetic.validation, "test": synthetic.test}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files, first = {}, 0
    for split, rows in counts.items():
        indices = range(first, first + -(-rows // rows_per_case))
        if rows:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                records = [record for found in pool.map(write_case, indices) for record in found]
            files[split] = write_json(folder / f"{split}.json", dict(records[:rows]))
        first = indices.stop
    return files


def draw_radiograph(finding: str, location: str, size: int, rng: Rng) -> Light:
    """Return a radiograph of ``size`` x ``size`` pixels that shows this finding at this location."""
    return draw_findings([(finding, location)], size, rng)


def draw_findings(findings: Sequence[tuple[str, str]], size: int, rng: Rng) -> Light:
    """Return a radiograph of ``size`` x ``size`` pixels that shows all findings, each with its location."""
    light = _draw_chest(size, any(name == "Cardiomegaly" for name, _ in findings), rng)
    for name, location in findings:
        if name in _DRAW:
            _DRAW[name](light, location, rng)
    light = _pose(cv2.GaussianBlur(light, (0, 0), size / 256), rng)
    light += rng.normal(0, 0.012, light.shape).astype(np.float32)
    return np.clip(light, 0, 1)


def write_radiograph(path: Path, light: Light, rng: Rng) -> None:
    """Write a 16-bit PNG with 12 to 16 used bits and a random base level."""
    top = 2 ** int(rng.integers(12, 17)) - 1
    base = rng.uniform(0, 0.2) * top
    pixels = (base + light * (top - base)).astype(np.uint16)
    write_image(path, pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def _pose(light: Light, rng: Rng) -> Light:
    size = len(light)
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), rng.normal(0, 2.5), rng.uniform(0.92, 1.06))
    turn[:, 2] += rng.normal(0, 0.015 * size, 2)
    return np.asarray(cv2.warpAffine(light, turn, (size, size), borderMode=cv2.BORDER_REPLICATE), np.float32)


def _draw_chest(size: int, large_heart: bool, rng: Rng) -> Light:
    light = np.full((size, size), 0.05, np.float32)
    _ellipse(light, (0.5, 0.62), (0.46, 0.60), 0.62)
    _ellipse(light, (0.5, 0.10), (0.12, 0.20), 0.62)
    darkness = rng.uniform(0.16, 0.26)
    for side, x in LUNG_X.items():
        _ellipse(light, (x + rng.uniform(-0.01, 0.01), 0.50), LUNG_AXES, darkness, slant=8 if side == "right" else -8)
    for x in LUNG_X.values():
        for y in np.arange(0.24, 0.80, 0.085):
            _arc(light, (x, y), 0.06)
    cv2.line(light, _pixel(light, (0.5, 0.05)), _pixel(light, (0.5, 0.98)), 0.72, max(1, size // 14))
    _draw_heart(light, large_heart, rng)
    return light


def _draw_heart(light: Light, large: bool, rng: Rng) -> None:
    width = rng.uniform(0.20, 0.23) if large else rng.uniform(0.115, 0.135)
    _ellipse(light, (0.5 + width * 0.42, 0.655), (width, 0.115 + width * 0.2), 0.74, slant=15)


def _draw_pneumonia(light: Light, location: str, rng: Rng) -> None:
    x, y = _centre(location, rng)
    for _ in range(9):
        spot = (x + rng.normal(0, 0.035), y + rng.normal(0, 0.035))
        _add(light, spot, rng.uniform(0.03, 0.055), rng.uniform(0.06, 0.10))


def _draw_nodule(light: Light, location: str, rng: Rng) -> None:
    _ellipse(light, _centre(location, rng), (rng.uniform(0.032, 0.042),) * 2, 0.82)


def _draw_effusion(light: Light, location: str, rng: Rng) -> None:
    x, top = LUNG_X[location], rng.uniform(0.60, 0.66)
    outer, inner = (x - 0.17, x + 0.15) if location == "right" else (x + 0.17, x - 0.15)
    meniscus = [(outer, 0.86), (outer, top), (x, top + 0.06), (inner, top + 0.08), (inner, 0.86)]
    cv2.fillPoly(light, [_points(light, meniscus)], 0.62)


def _draw_pneumothorax(light: Light, location: str, rng: Rng) -> None:
    x, depth = LUNG_X[location], rng.uniform(0.13, 0.17)
    _ellipse(light, (x, 0.30), (0.13, depth), 0.03)
    cv2.ellipse(
        light, _pixel(light, (x, 0.30)), _pixel(light, (0.13, depth)), 0, 10, 170, 0.6, max(1, len(light) // 128)
    )


def _draw_pacemaker(light: Light, location: str, rng: Rng) -> None:
    x = LUNG_X[location] + (-0.03 if location == "right" else 0.03)
    y = rng.uniform(0.26, 0.31)
    box = _points(light, [(x - 0.06, y - 0.045), (x + 0.06, y - 0.045), (x + 0.06, y + 0.045), (x - 0.06, y + 0.045)])
    cv2.fillPoly(light, [box], 1.0)
    lead = _points(light, [(x, y), ((x + 0.5) / 2, y - 0.05), (0.5, 0.45), (0.53, 0.66)])
    cv2.polylines(light, [lead], False, 1.0, max(1, len(light) // 100))


_DRAW: Mapping[str, Callable[[Light, str, Rng], None]] = {
    "Pneumonia": _draw_pneumonia,
    "Pulmonary nodule": _draw_nodule,
    "Pleural effusion": _draw_effusion,
    "Pneumothorax": _draw_pneumothorax,
    "Pacemaker": _draw_pacemaker,
}


def _centre(location: str, rng: Rng) -> tuple[float, float]:
    side, zone, _ = location.split()
    return LUNG_X[side] + rng.uniform(-0.035, 0.035), ZONE_Y[zone] + rng.uniform(-0.03, 0.03)


def _ellipse(
    light: Light, centre: tuple[float, float], axes: tuple[float, float], value: float, slant: float = 0
) -> None:
    cv2.ellipse(light, _pixel(light, centre), _pixel(light, axes), slant, 0, 360, value, -1)


def _arc(light: Light, centre: tuple[float, float], strength: float) -> None:
    layer = np.zeros_like(light)
    cv2.ellipse(
        layer, _pixel(light, centre), _pixel(light, (0.15, 0.05)), 0, 190, 350, strength, max(1, len(light) // 70)
    )
    light += layer


def _add(light: Light, centre: tuple[float, float], sigma: float, strength: float) -> None:
    size = len(light)
    y, x = np.ogrid[:size, :size]
    distance = ((x / size - centre[0]) ** 2 + (y / size - centre[1]) ** 2) / (2 * sigma**2)
    light += (strength * np.exp(-distance)).astype(np.float32)


def _pixel(light: Light, point: tuple[float, float]) -> tuple[int, int]:
    return round(point[0] * len(light)), round(point[1] * len(light))


def _points(light: Light, corners: list[tuple[float, float]]) -> NDArray[np.int32]:
    return np.array([_pixel(light, corner) for corner in corners], np.int32)
