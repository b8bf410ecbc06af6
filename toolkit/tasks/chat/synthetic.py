"""Synthetic rows of the task: conversations of two or three questions about one or two chest radiographs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.data.task import Synthetic
from toolkit.recipe import SyntheticData
from toolkit.synthetic import Rng
from toolkit.synthetic.chest import (
    FINDINGS,
    ChestCase,
    Records,
    draw_radiograph,
    make_case,
    write_cases,
    write_radiograph,
)

SECOND_IMAGE_RATE = 0.25
"""Fraction of the conversations whose last question is about a second radiograph."""

SYSTEM_RATE = 0.5
"""Fraction of the conversations with a system prompt."""

SYSTEM = "Answer briefly."

QUESTIONS: Mapping[str, Callable[[ChestCase], str]] = {
    "Findings:": lambda case: f"{case.description}.",
    "What is the primary finding?": lambda case: case.finding.name,
    "Which side of the chest shows an abnormality?": lambda case: f"{(case.side or 'neither').capitalize()} side",
    "How large is the heart?": lambda case: ("Normal", "Enlarged")[case.finding.name == "Cardiomegaly"] + " heart",
}


def write_chest_chat(folder: Path, synthetic: SyntheticData, seed: int) -> dict[str, Path]:
    """Write radiographs, and one conversation about each. See ``write_cases`` for the layout of the folder."""

    def write_case(index: int) -> Records:
        case, rng = make_case(seed, index)
        _draw(folder, case, synthetic.size, rng)
        radiographs = [case]
        if rng.random() < SECOND_IMAGE_RATE:
            radiographs.append(_second_radiograph(case, rng))
            _draw(folder, radiographs[1], synthetic.size, rng)
        return [(case.id, _conversation(radiographs, rng))]

    return write_cases(folder, synthetic, write_case)


def _draw(folder: Path, case: ChestCase, size: int, rng: Rng) -> None:
    light = draw_radiograph(case.finding.name, case.location, size, rng)
    write_radiograph(folder / "images" / f"{case.id}.png", light, rng)


def _second_radiograph(case: ChestCase, rng: Rng) -> ChestCase:
    """Return a later radiograph of the patient with another finding."""
    others = [finding for finding in FINDINGS if finding is not case.finding]
    finding = others[rng.integers(len(others))]
    location = finding.locations[rng.integers(len(finding.locations))] if finding.locations else ""
    return replace(case, id=f"{case.id}b", finding=finding, location=location)


def _conversation(radiographs: list[ChestCase], rng: Rng) -> dict[str, Any]:
    """Return a record. The last question is about the last radiograph."""
    case = radiographs[0]
    order = [list(QUESTIONS)[i] for i in rng.permutation(len(QUESTIONS))[: int(rng.integers(2, 4))]]
    messages = [{"role": "system", "content": SYSTEM}] if rng.random() < SYSTEM_RATE else []
    for number, question in enumerate(order):
        shown = radiographs[-1] if number == len(order) - 1 else case
        image = "<image>\n" if number == 0 or shown is not case else ""
        messages.append({"role": "user", "content": f"{image}{question}"})
        messages.append({"role": "assistant", "content": QUESTIONS[question](shown)})
    return {"messages": messages, "images": [f"images/{one.id}.png" for one in radiographs], "PatientID": case.id}


CHEST_CHAT = Synthetic(
    kind="chest_chat",
    description="chest radiographs, conversations of two or three questions",
    write=write_chest_chat,
    columns=frozenset({"messages", "images", "PatientID"}),
)
