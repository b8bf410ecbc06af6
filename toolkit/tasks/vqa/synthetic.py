"""Synthetic rows of the task: open and closed questions about chest radiographs, with the fields of VQA-RAD."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.data.task import Synthetic
from toolkit.recipe import SyntheticData
from toolkit.synthetic import Rng
from toolkit.synthetic.chest import ChestCase, Records, write_radiographs

CLEAR = ("No acute finding", "Cardiomegaly", "Pacemaker")
"""Findings that leave the lungs clear."""


class ShortAnswer(NamedTuple):
    """A question, its answer, and its type in VQA-RAD."""

    question: str
    answer: str
    kind: str

    @property
    def closed(self) -> bool:
        """Whether the answer is yes or no."""
        return self.answer in ("yes", "no")


MakeShortAnswer = Callable[[ChestCase], ShortAnswer]


def write_chest_vqa(folder: Path, synthetic: SyntheticData, seed: int) -> dict[str, Path]:
    """Write the radiographs of ``write_chest`` for the same seed, with an open and a closed question about each.

    See ``write_radiographs`` for the layout of the folder.
    """
    return write_radiographs(folder, synthetic, seed, make_short_questions)


def make_short_questions(case: ChestCase, rng: Rng) -> Records:
    """Return a closed and an open question, each drawn from those that apply to the case."""
    kinds = (CLOSED, OPEN_WITH_SIDE if case.side else OPEN)
    return [_record(case, list(questions.items())[rng.integers(len(questions))]) for questions in kinds]


def _record(case: ChestCase, chosen: tuple[str, MakeShortAnswer]) -> tuple[str, dict[str, Any]]:
    name, make = chosen
    item = make(case)
    return f"{case.id}-{name}", {
        "question": item.question,
        "answer": item.answer,
        "answer_type": "CLOSED" if item.closed else "OPEN",
        "question_type": item.kind,
        "image_name": f"images/{case.id}.png",
        "image_organ": "CHEST",
        "PatientID": case.id,
    }


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


CLOSED: Mapping[str, MakeShortAnswer] = {
    "heart": lambda case: ShortAnswer(
        "Is the heart enlarged?", _yes_or_no(case.finding.name == "Cardiomegaly"), "SIZE"
    ),
    "lungs": lambda case: ShortAnswer("Are both lungs clear?", _yes_or_no(case.finding.name in CLEAR), "ABN"),
}
OPEN: Mapping[str, MakeShortAnswer] = {
    "finding": lambda case: ShortAnswer("What is the primary finding?", case.finding.name.lower(), "ABN"),
}
OPEN_WITH_SIDE: Mapping[str, MakeShortAnswer] = {
    **OPEN,
    "side": lambda case: ShortAnswer("Which side of the chest shows an abnormality?", case.side, "POS"),
}

CHEST_VQA = Synthetic(
    kind="chest_vqa",
    description="the same radiographs, open and closed questions",
    write=write_chest_vqa,
    columns=frozenset({"question", "answer", "answer_type", "question_type", "image_name", "image_organ", "PatientID"}),
)
