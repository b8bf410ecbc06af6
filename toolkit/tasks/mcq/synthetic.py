"""Synthetic rows of the task: multiple-choice questions about chest radiographs, with the fields of ReXVQA."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.data.task import Synthetic
from toolkit.recipe import SyntheticData
from toolkit.synthetic import Rng
from toolkit.synthetic.chest import (
    FINDINGS,
    LOCATIONS,
    QUESTIONS_PER_IMAGE,
    SIDES,
    ZONES,
    ChestCase,
    Records,
    write_radiographs,
)

LETTERS = "ABCD"
FINDING_QUESTION_RATE = 0.15
"""Fraction of cases with a question about the finding. Its options are shuffled, and the tiny model hardly learns to
look letters up, so the rate is low."""
NORMAL_HEART_QUESTION_RATE = 0.2
"""Fraction of cases with a normal heart that get the heart question. At 1, "normal" would nearly always be right."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "None": ("No acute finding",),
    "Large heart": ("Cardiomegaly",),
    "Opacity or fluid": ("Pneumonia", "Pulmonary nodule", "Pleural effusion"),
    "Air or device": ("Pneumothorax", "Pacemaker"),
}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


def write_chest(folder: Path, synthetic: SyntheticData, seed: int) -> dict[str, Path]:
    """Write radiographs and multiple-choice questions, and return the JSON file of each split that has rows.

    See ``write_radiographs`` for the layout of the folder.
    """
    return write_radiographs(folder, synthetic, seed, make_questions)


def make_questions(case: ChestCase, rng: Rng) -> Records:
    """Return ``QUESTIONS_PER_IMAGE`` pairs of id and record, each of another kind."""
    kinds = possible_kinds(case)
    if case.finding.name != "Cardiomegaly" and rng.random() > NORMAL_HEART_QUESTION_RATE:
        kinds.remove("heart")
    if rng.random() > FINDING_QUESTION_RATE:
        kinds.remove("finding")
    chosen = rng.permutation(len(kinds))[:QUESTIONS_PER_IMAGE]
    return [(f"{case.id}-{kinds[i]}", _record(case, kinds[i], rng)) for i in chosen]


def _record(case: ChestCase, kind: str, rng: Rng) -> dict[str, Any]:
    choice = QUESTION_KINDS[kind](case, rng)
    return {
        "question": choice.question,
        "options": [f"{letter}. {text}" for letter, text in zip(LETTERS, choice.options, strict=False)],
        "correct_answer": LETTERS[choice.right],
        "correct_answer_explanation": f"{case.description}.",
        "ImagePath": [f"images/{case.id}.png"],
        "question_type": kind,
        "PatientID": case.id,
        "PatientSex": case.sex,
        "PatientAge": case.age,
        "Indication": case.indication,
        "Comparison": "None.",
        "Findings": f"{case.description}. No fracture.",
        "Impression": f"{case.finding.name}.",
    }


class Choice(NamedTuple):
    """A question, its options in the displayed order, and the index of the right option."""

    question: str
    options: list[str]
    right: int


def _finding_question(case: ChestCase, rng: Rng) -> Choice:
    others = [finding.name for finding in FINDINGS if finding is not case.finding]
    options = _sample([case.finding.name, *_sample(others, 3, rng)], 4, rng)
    return Choice("What is the primary finding?", options, options.index(case.finding.name))


def _group_question(case: ChestCase, rng: Rng) -> Choice:
    options = list(GROUPS)
    return Choice("What kind of finding is shown?", options, options.index(GROUP_OF[case.finding.name]))


def _side_question(case: ChestCase, rng: Rng) -> Choice:
    options = ["Right side", "Left side", "Neither side"]
    return Choice("Which side of the chest shows an abnormality?", options, (*SIDES, "").index(case.side))


def _zone_question(case: ChestCase, rng: Rng) -> Choice:
    options = [f"{zone.capitalize()} zone" for zone in ZONES]
    return Choice("In which zone is the abnormality?", options, ZONES.index(case.location.split()[1]))


def _heart_question(case: ChestCase, rng: Rng) -> Choice:
    options = ["Normal heart", "Enlarged heart"]
    return Choice("How large is the heart?", options, int(case.finding.name == "Cardiomegaly"))


QUESTION_KINDS: Mapping[str, Callable[[ChestCase, Rng], Choice]] = {
    "finding": _finding_question,
    "group": _group_question,
    "side": _side_question,
    "zone": _zone_question,
    "heart": _heart_question,
}
"""Options keep the natural order of their question. Findings have no such order, so they are shuffled."""


def possible_kinds(case: ChestCase) -> list[str]:
    """Return the kinds of question that apply to this case."""
    return [kind for kind in QUESTION_KINDS if kind != "zone" or case.finding.locations == LOCATIONS]


def _sample(texts: list[str], count: int, rng: Rng) -> list[str]:
    return [texts[i] for i in rng.permutation(len(texts))[:count]]


CHEST = Synthetic(
    kind="chest",
    description="16-bit chest radiographs, multiple choice",
    write=write_chest,
    columns=frozenset(
        {
            "question",
            "options",
            "correct_answer",
            "correct_answer_explanation",
            "ImagePath",
            "question_type",
            "PatientID",
            "PatientSex",
            "PatientAge",
            "Indication",
            "Comparison",
            "Findings",
            "Impression",
        }
    ),
)
