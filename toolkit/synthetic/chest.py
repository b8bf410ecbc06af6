"""Chest films in 16 bits with findings that can be seen, and questions about them in ReXVQA's JSON."""

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toolkit.recipe import SyntheticData
from toolkit.synthetic.radiograph import Rng, draw_film, write_film

SIDES = ("right", "left")
ZONES = ("upper", "middle", "lower")
PLACES = tuple(f"{side} {zone} zone" for side in SIDES for zone in ZONES)
INDICATIONS = ("Cough.", "Fever.", "Chest pain.", "Shortness of breath.", "Check-up before surgery.", "Weight loss.")
QUESTIONS_PER_FILM = 2
LETTERS = "ABCD"
FINDINGS_ASKED = 0.15
"""Share of the films whose finding is asked with shuffled options: the tiny model hardly learns to look letters up."""
NORMAL_HEARTS_ASKED = 0.2
"""Share of the films with a normal heart whose heart is asked about: else "normal" would nearly always be right."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a film shows: its name in an answer, how a report describes it, and where it may stand."""

    name: str
    description: str
    places: tuple[str, ...]
    """Empty: the finding has no place of its own."""


FINDINGS = (
    Finding("No acute finding", "Both lungs are clear", ()),
    Finding("Cardiomegaly", "The heart is enlarged", ()),
    Finding("Pneumonia", "Patchy opacity in the {place}", PLACES),
    Finding("Pulmonary nodule", "Round nodule in the {place}", PLACES),
    Finding("Pleural effusion", "Fluid at the base of the {place} lung", SIDES),
    Finding("Pneumothorax", "Air without lung markings at the apex of the {place} lung", SIDES),
    Finding("Pacemaker", "Metal device over the {place} chest", SIDES),
)


GROUPS: Mapping[str, tuple[str, ...]] = {
    "None": ("No acute finding",),
    "Large heart": ("Cardiomegaly",),
    "Opacity or fluid": ("Pneumonia", "Pulmonary nodule", "Pleural effusion"),
    "Air or device": ("Pneumothorax", "Pacemaker"),
}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


@dataclass(frozen=True, slots=True)
class Film:
    """One generated patient: ``place`` is empty where the finding has none."""

    id: str
    finding: Finding
    place: str
    sex: str
    age: int
    indication: str

    @property
    def description(self) -> str:
        """The sentence that a report would hold, without its full stop."""
        return self.finding.description.format(place=self.place)

    @property
    def side(self) -> str:
        """``right``, ``left`` or empty."""
        return self.place.partition(" ")[0]


Records = list[tuple[str, dict[str, Any]]]
"""Pairs of id and record."""

Ask = Callable[[Film, Rng], Records]
"""``QUESTIONS_PER_FILM`` questions about a film; the generator goes on from its drawing."""


def make_film(seed: int, index: int) -> tuple[Film, Rng]:
    """The patient with this number, and the generator that goes on to draw the film; the same on every machine."""
    rng = np.random.default_rng([seed, index])
    finding = FINDINGS[rng.integers(len(FINDINGS))]
    place = finding.places[rng.integers(len(finding.places))] if finding.places else ""
    film = Film(
        id=f"film{index:06d}",
        finding=finding,
        place=place,
        sex="FM"[rng.integers(2)],
        age=int(rng.integers(20, 90)),
        indication=INDICATIONS[rng.integers(len(INDICATIONS))],
    )
    return film, rng


def make_record(film: Film, kind: str, rng: Rng) -> dict[str, Any]:
    """One question of this kind about a film, with the fields of ReXVQA."""
    choice = QUESTION_KINDS[kind](film, rng)
    return {
        "question": choice.question,
        "options": [f"{letter}. {text}" for letter, text in zip(LETTERS, choice.options, strict=False)],
        "correct_answer": LETTERS[choice.right],
        "correct_answer_explanation": f"{film.description}.",
        "ImagePath": [f"images/{film.id}.png"],
        "question_type": kind,
        "PatientID": film.id,
        "PatientSex": film.sex,
        "PatientAge": film.age,
        "Indication": film.indication,
        "Comparison": "None.",
        "Findings": f"{film.description}. No fracture.",
        "Impression": f"{film.finding.name}.",
    }


def write_chest(folder: Path, synthetic: SyntheticData, seed: int) -> dict[str, Path]:
    """Write films and questions and give the JSON file of each split that has rows.

    ``folder`` gets ``train.json``, ``validation.json``, ``test.json`` (object id -> record) and ``images/*.png``.
    Written again, the files are the same to the byte. No film stands in two splits. Each JSON is written last, under a
    temporary name first.
    """
    return write_films(folder, synthetic, seed, questions_about)


def write_films(folder: Path, synthetic: SyntheticData, seed: int, ask: Ask) -> dict[str, Path]:
    """As ``write_chest``, with other questions about the same films."""
    counts = {"train": synthetic.train, "validation": synthetic.validation, "test": synthetic.test}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files, first = {}, 0
    for split, rows in counts.items():
        films = range(first, first + -(-rows // QUESTIONS_PER_FILM))
        if rows:
            records = _write_pictures(folder, films, (synthetic.size, seed), ask)
            files[split] = _write_split(folder / f"{split}.json", dict(records[:rows]))
        first = films.stop
    return files


def _write_pictures(folder: Path, films: range, shape: tuple[int, int], ask: Ask) -> Records:
    size, seed = shape

    def one(index: int) -> Records:
        film, rng = make_film(seed, index)
        write_film(folder / "images" / f"{film.id}.png", draw_film(film.finding.name, film.place, size, rng), rng)
        return ask(film, rng)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [record for pairs in pool.map(one, films) for record in pairs]


def _write_split(path: Path, records: dict[str, dict[str, Any]]) -> Path:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(records, indent=1), encoding="utf-8")
    temporary.replace(path)
    return path


def questions_about(film: Film, rng: Rng) -> Records:
    """``QUESTIONS_PER_FILM`` pairs of id and record, of different kinds."""
    kinds = possible_kinds(film)
    if film.finding.name != "Cardiomegaly" and rng.random() > NORMAL_HEARTS_ASKED:
        kinds.remove("heart")
    if rng.random() > FINDINGS_ASKED:
        kinds.remove("finding")
    chosen = rng.permutation(len(kinds))[:QUESTIONS_PER_FILM]
    return [(f"{film.id}-{kinds[i]}", make_record(film, kinds[i], rng)) for i in chosen]


class Choice(NamedTuple):
    """A question about a film: its options in the order shown, and which of them is right."""

    question: str
    options: list[str]
    right: int


def _ask_finding(film: Film, rng: Rng) -> Choice:
    others = [finding.name for finding in FINDINGS if finding is not film.finding]
    options = _some([film.finding.name, *_some(others, 3, rng)], 4, rng)
    return Choice("What is the primary finding?", options, options.index(film.finding.name))


def _ask_group(film: Film, rng: Rng) -> Choice:
    options = list(GROUPS)
    return Choice("What kind of finding is shown?", options, options.index(GROUP_OF[film.finding.name]))


def _ask_side(film: Film, rng: Rng) -> Choice:
    options = ["Right side", "Left side", "Neither side"]
    return Choice("Which side of the chest shows an abnormality?", options, (*SIDES, "").index(film.side))


def _ask_zone(film: Film, rng: Rng) -> Choice:
    options = [f"{zone.capitalize()} zone" for zone in ZONES]
    return Choice("In which zone is the abnormality?", options, ZONES.index(film.place.split()[1]))


def _ask_heart(film: Film, rng: Rng) -> Choice:
    options = ["Normal heart", "Enlarged heart"]
    return Choice("How large is the heart?", options, int(film.finding.name == "Cardiomegaly"))


QUESTION_KINDS: Mapping[str, Callable[[Film, Rng], Choice]] = {
    "finding": _ask_finding,
    "group": _ask_group,
    "side": _ask_side,
    "zone": _ask_zone,
    "heart": _ask_heart,
}
"""Options stand in the order that their question has by nature; findings have none and are shuffled."""


def possible_kinds(film: Film) -> list[str]:
    """The kinds of question that this film can be asked."""
    return [kind for kind in QUESTION_KINDS if kind != "zone" or film.finding.places == PLACES]


def _some(texts: list[str], count: int, rng: Rng) -> list[str]:
    return [texts[i] for i in rng.permutation(len(texts))[:count]]
