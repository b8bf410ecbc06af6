"""How a question about lesions is put, and the answer that SFT learns: tags in one order, one line a lesion."""

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from toolkit.data.sample import Sample
from toolkit.scoring.regions import GRIDS, Frame, shorten, spell_place
from toolkit.tasks.lesion.settings import LesionSettings

WHAT = (
    "What does this picture of the skin show?",
    "Which skin lesion is this?",
    "Describe the lesion in this dermoscopic picture.",
    "Name the skin lesion that you see.",
)
WHERE = (
    "What does this picture of the skin show, and where?",
    "Which skin lesion is this, and where is it?",
    "Name each lesion in this dermoscopic picture and say where it is.",
    "Find the lesions in this picture and name them.",
)
"""Wordings of one question; the seed chooses one for each row."""

PLACED = frozenset({"location", "bbox", "polygon"})
MOST_VERTICES = 16
"""Of a polygon in an answer: an outline of a lesion keeps about 0.97 of its IoU with 16."""

_EXAMPLES = {
    "diagnosis": "<diagnosis>name</diagnosis>",
    "location": "<location>place</location>",
    "size": "<size>size</size>",
    "features": "<features>features</features>",
    "bbox": "<bbox>[x1, y1, x2, y2]</bbox>",
    "polygon": "<polygon>[[x, y], [x, y], …]</polygon>",
}


def choose_question(asked: Sequence[str], random: Random) -> str:
    """One of the wordings."""
    return random.choice(WHERE if PLACED & set(asked) else WHAT)


def question(sample: Sample) -> str:
    """The wording that the seed chose for the row."""
    return str(sample.fields["question"])


def instruction(sample: Sample) -> str:
    """The format of the answer: its tags, the names of diagnoses and places, and what coordinates mean."""
    settings: LesionSettings = sample.fields["settings"]
    asked = sample.fields["asked"]
    lines = [f"Answer with one line for each lesion: {' '.join(_EXAMPLES[part] for part in asked)}"]
    if "diagnosis" in asked:
        lines.append(f"Diagnoses: {', '.join(label.name for label in settings.labels.labels)}.")
    if "location" in asked:
        rows, columns = GRIDS[settings.grid]
        lines.append(f"Places: {', '.join(rows)}, then {', '.join(columns)}, such as {rows[0]}-{columns[0]}.")
    if {"bbox", "polygon"} & set(asked):
        width, height = (f"{end:g}" for end in sample.fields["frame"].span)
        lines.append(f"Coordinates: x from 0 to {width}, y from 0 to {height}, from the upper left corner.")
    return "\n".join(lines)


def target(sample: Sample) -> str:
    """The reference answer: one line a lesion, the largest first."""
    count = max(len(sample.reference["boxes"]), 1)
    return "\n".join(_line(sample, number) for number in range(count))


def _line(sample: Sample, number: int) -> str:
    """What is known of one lesion; size and features are the picture's, and stand with the first."""
    reference, settings, frame = sample.reference, sample.fields["settings"], sample.fields["frame"]
    parts = []
    for part in sample.fields["asked"]:
        if part in ("size", "features") and number:
            continue
        parts.append(f"<{part}>{_WRITE[part](reference, number, settings, frame)}</{part}>")
    return " ".join(parts)


def write_box(frame: Frame, box: Sequence[float]) -> str:
    """A box in pixels as the model writes it.

    >>> from toolkit.scoring.regions import COORDINATES
    >>> write_box(Frame((600, 450), (600, 450), COORDINATES["thousand"]), (71, 105, 515, 410))
    '[118, 233, 858, 911]'
    """
    return json.dumps(frame.write(box))


def _polygon(reference: Any, number: int, settings: LesionSettings, frame: Frame) -> str:
    polygons = reference["polygons"]
    short = shorten(polygons[min(number, len(polygons) - 1)], MOST_VERTICES)
    return json.dumps([frame.write(point) for point in short])


_WRITE = {
    "diagnosis": lambda reference, number, settings, frame: settings.labels.name(reference["diagnosis"]),
    "location": lambda reference, number, settings, frame: spell_place(
        tuple(reference["places"][min(number, len(reference["places"]) - 1)]), settings.grid
    ),
    "size": lambda reference, number, settings, frame: reference["size"],
    "features": lambda reference, number, settings, frame: ", ".join(reference["features"]),
    "bbox": lambda reference, number, settings, frame: write_box(frame, reference["boxes"][number]),
    "polygon": _polygon,
}
"""Part -> how it is written for the lesion with this number."""
