"""Open and closed questions about the practice films, in the fields of VQA-RAD's JSON."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.data.task import Synthetic
from toolkit.recipe import Phantom
from toolkit.synthetic.chest import Film, Records, write_films
from toolkit.synthetic.radiograph import Rng

CLEAR = ("No acute finding", "Cardiomegaly", "Pacemaker")
"""Findings that leave the lungs clear."""


class ShortAnswer(NamedTuple):
    """A question, its answer, and what VQA-RAD would call its kind."""

    question: str
    answer: str
    kind: str

    @property
    def closed(self) -> bool:
        """Whether yes or no answers it."""
        return self.answer in ("yes", "no")


Ask = Callable[[Film], ShortAnswer]


def write_chest_vqa(folder: Path, phantom: Phantom, seed: int) -> dict[str, Path]:
    """As ``write_chest``: the same films of a seed, with an open and a closed question about each."""
    return write_films(folder, phantom, seed, short_questions)


def short_questions(film: Film, rng: Rng) -> Records:
    """A closed and an open question, each drawn from those that fit the film."""
    kinds = (CLOSED, OPEN_WITH_SIDE if film.side else OPEN)
    return [_record(film, list(some.items())[rng.integers(len(some))]) for some in kinds]


def _record(film: Film, chosen: tuple[str, Ask]) -> tuple[str, dict[str, Any]]:
    name, ask = chosen
    asked = ask(film)
    return f"{film.id}-{name}", {
        "question": asked.question,
        "answer": asked.answer,
        "answer_type": "CLOSED" if asked.closed else "OPEN",
        "question_type": asked.kind,
        "image_name": f"images/{film.id}.png",
        "image_organ": "CHEST",
        "PatientID": film.id,
    }


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


CLOSED: Mapping[str, Ask] = {
    "heart": lambda film: ShortAnswer(
        "Is the heart enlarged?", _yes_or_no(film.finding.name == "Cardiomegaly"), "SIZE"
    ),
    "lungs": lambda film: ShortAnswer("Are both lungs clear?", _yes_or_no(film.finding.name in CLEAR), "ABN"),
}
OPEN: Mapping[str, Ask] = {
    "finding": lambda film: ShortAnswer("What is the primary finding?", film.finding.name.lower(), "ABN"),
}
OPEN_WITH_SIDE: Mapping[str, Ask] = {
    **OPEN,
    "side": lambda film: ShortAnswer("Which side of the chest shows an abnormality?", film.side, "POS"),
}

CHEST_VQA = Synthetic(
    kind="chest_vqa",
    description="the same radiographs, open and closed questions",
    write=write_chest_vqa,
    columns=frozenset({"question", "answer", "answer_type", "question_type", "image_name", "image_organ", "PatientID"}),
)
