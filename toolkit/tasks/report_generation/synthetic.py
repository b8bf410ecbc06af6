"""Synthetic rows of the task: chest radiographs with up to four findings, and their reports."""

from pathlib import Path
from typing import NamedTuple

from toolkit.data.task import Synthetic
from toolkit.recipe import SyntheticData
from toolkit.synthetic import Rng
from toolkit.synthetic.chest import (
    FINDINGS,
    SIDES,
    ZONES,
    Finding,
    Records,
    draw_findings,
    make_case,
    write_cases,
    write_radiograph,
)

BY_NAME = {finding.name: finding for finding in FINDINGS}
NORMAL = BY_NAME["No acute finding"]
LUNG_FINDINGS = ("Pneumonia", "Pulmonary nodule", "Pleural effusion", "Pneumothorax")
"""Findings of one lung. Each lung has at most one of them, so that no finding hides another."""

LUNG_RATE, HEART_RATE, DEVICE_RATE = 0.4, 0.3, 0.2
"""Fractions of the lungs, hearts and patients with a finding."""

NEGATIVE = "No fracture."
"""The negative finding of every report."""


class Located(NamedTuple):
    """A finding with its location, which is empty if the finding has none."""

    finding: Finding
    location: str

    @property
    def sentence(self) -> str:
        """The sentence of the section Findings."""
        return f"{self.finding.description.format(location=self.location)}."


def write_chest_reports(folder: Path, synthetic: SyntheticData, seed: int) -> dict[str, Path]:
    """Write radiographs and one report about each. See ``write_cases`` for the layout of the folder."""

    def write_case(index: int) -> Records:
        case, rng = make_case(seed, index)
        found = draw_located(rng)
        light = draw_findings([(one.finding.name, one.location) for one in found], synthetic.size, rng)
        write_radiograph(folder / "images" / f"{case.id}.png", light, rng)
        findings = " ".join([*(one.sentence for one in found), NEGATIVE])
        impression = " ".join(f"{one.finding.name}." for one in found)
        record = {
            "image": f"images/{case.id}.png",
            "report": f"Findings:\n{findings}\nDiagnosis:\n{impression}",
            "findings": findings,
            "impression": impression,
            "Indication": case.indication,
            "PatientID": case.id,
        }
        return [(case.id, record)]

    return write_cases(folder, synthetic, write_case)


def draw_located(rng: Rng) -> list[Located]:
    """Return the findings of a patient. Without any, the only entry is ``NORMAL``."""
    found = []
    for side in SIDES:
        if rng.random() < LUNG_RATE:
            finding = BY_NAME[LUNG_FINDINGS[rng.integers(len(LUNG_FINDINGS))]]
            zone = ZONES[rng.integers(len(ZONES))]
            found.append(Located(finding, f"{side} {zone} zone" if " " in finding.locations[0] else side))
    if rng.random() < HEART_RATE:
        found.append(Located(BY_NAME["Cardiomegaly"], ""))
    taken = {one.location.partition(" ")[0] for one in found}
    if rng.random() < DEVICE_RATE and (free := [side for side in SIDES if side not in taken]):
        found.append(Located(BY_NAME["Pacemaker"], free[rng.integers(len(free))]))
    return found or [Located(NORMAL, "")]


CHEST_REPORTS = Synthetic(
    kind="chest_reports",
    description="chest radiographs with several findings, reports",
    write=write_chest_reports,
    columns=frozenset({"image", "report", "findings", "impression", "Indication", "PatientID"}),
)
