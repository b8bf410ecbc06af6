"""Synthetic chest radiographs as 16-bit PNG: patients, visible findings, and their files."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.recipe import SyntheticData
from toolkit.synthetic.radiograph import Rng, draw_radiograph, write_radiograph

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


def make_case(seed: int, index: int) -> tuple[ChestCase, Rng]:
    """Return the case with this number and the generator that draws its radiograph.

    The result is the same on every machine.
    """
    rng = np.random.default_rng([seed, index])
    finding = FINDINGS[rng.integers(len(FINDINGS))]
    location = finding.locations[rng.integers(len(finding.locations))] if finding.locations else ""
    case = ChestCase(
        id=f"film{index:06d}",
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
    """Write radiographs and questions, and return the JSON file of each split that has rows.

    ``folder`` gets ``train.json``, ``validation.json``, ``test.json`` (object id -> record) and ``images/*.png``. A
    second call writes the same bytes. No radiograph is in two splits. Each JSON file is written last and atomically.
    """
    counts = {"train": synthetic.train, "validation": synthetic.validation, "test": synthetic.test}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files, first = {}, 0
    for split, rows in counts.items():
        indices = range(first, first + -(-rows // QUESTIONS_PER_IMAGE))
        if rows:
            records = _write_images(folder, indices, (synthetic.size, seed), make_questions)
            files[split] = _write_split(folder / f"{split}.json", dict(records[:rows]))
        first = indices.stop
    return files


def _write_images(folder: Path, indices: range, shape: tuple[int, int], make_questions: MakeQuestions) -> Records:
    size, seed = shape

    def write_one(index: int) -> Records:
        case, rng = make_case(seed, index)
        light = draw_radiograph(case.finding.name, case.location, size, rng)
        write_radiograph(folder / "images" / f"{case.id}.png", light, rng)
        return make_questions(case, rng)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [record for pairs in pool.map(write_one, indices) for record in pairs]


def _write_split(path: Path, records: dict[str, dict[str, Any]]) -> Path:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(records, indent=1), encoding="utf-8")
    temporary.replace(path)
    return path
