"""Prompt of the lesion task, and the SFT target: tags in a fixed order, one line per lesion."""

import json
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from toolkit.data.sample import Sample
from toolkit.scoring.regions import GRIDS, Frame, format_location, simplify_polygon, write_box

if TYPE_CHECKING:
    from toolkit.tasks.lesion.schema import LesionSettings

WHAT = (
    "What does this image of the skin show?",
    "Which skin lesion is this?",
    "Describe the lesion in this dermoscopic image.",
    "Name the skin lesion that you see.",
)
WHERE = (
    "What does this image of the skin show, and where?",
    "Which skin lesion is this, and where is it?",
    "Name each lesion in this dermoscopic image and say where it is.",
    "Find the lesions in this image and name them.",
)
"""Wordings of one question. The seed chooses one per row."""

PLACED = frozenset({"location", "bbox", "polygon"})
MAX_VERTICES = 16
"""Vertices of a polygon in an answer. A lesion's outline keeps an IoU of about 0.97 with 16."""

_EXAMPLES = {
    "diagnosis": "<diagnosis>name</diagnosis>",
    "location": "<location>place</location>",
    "size": "<size>size</size>",
    "features": "<features>features</features>",
    "bbox": "<bbox>{corners}</bbox>",
    "polygon": "<polygon>[{point}, {point}, …]</polygon>",
}


def choose_question(requested: Sequence[str], random: Random) -> str:
    """Return one of the wordings."""
    return random.choice(WHERE if PLACED & set(requested) else WHAT)


def question(sample: Sample) -> str:
    """Return the wording that the seed chose for the row."""
    return str(sample.fields["question"])


def prompt_key(sample: Sample) -> str:
    """Return the requested parts, because the wording of the question is drawn."""
    return " ".join(sample.fields["requested"])


def instruction(sample: Sample) -> str:
    """Return the answer format: tags, names of diagnoses and locations, and the coordinate convention."""
    settings: LesionSettings = sample.fields["settings"]
    requested = sample.fields["requested"]
    frame: Frame = sample.fields["frame"]
    example = " ".join(_EXAMPLES[part] for part in requested)
    example = example.format(corners=frame.coordinates.corners, point=frame.coordinates.point)
    lines = [f"Answer with one line for each lesion: {example}"]
    if "diagnosis" in requested:
        lines.append(f"Diagnoses: {', '.join(label.name for label in settings.labels.labels)}.")
    if "location" in requested:
        rows, columns = GRIDS[settings.grid]
        lines.append(f"Places: {', '.join(rows)}, then {', '.join(columns)}, such as {rows[0]}-{columns[0]}.")
    if {"bbox", "polygon"} & set(requested):
        lines.append(f"Coordinates: {frame.ranges}, from the upper left corner.")
    return "\n".join(lines)


def target(sample: Sample) -> str:
    """Return the reference answer: one line per lesion, largest first."""
    outlined = sample.reference["polygons"] if "polygon" in sample.fields["requested"] else []
    count = len(sample.reference["boxes"]) or max(len(outlined), 1)
    return "\n".join(_line(sample, number) for number in range(count))


def _line(sample: Sample, number: int) -> str:
    """Return the line of one lesion. Size and features belong to the image and are in the first line."""
    reference, settings, frame = sample.reference, sample.fields["settings"], sample.fields["frame"]
    parts = []
    for part in sample.fields["requested"]:
        if part in ("size", "features") and number:
            continue
        parts.append(f"<{part}>{_WRITE[part](reference, number, settings, frame)}</{part}>")
    return " ".join(parts)


def _polygon(reference: Any, number: int, settings: "LesionSettings", frame: Frame) -> str:
    polygons = reference["polygons"]
    short = simplify_polygon(polygons[min(number, len(polygons) - 1)], MAX_VERTICES)
    return json.dumps([frame.write(point) for point in short])


_WRITE = {
    "diagnosis": lambda reference, number, settings, frame: settings.labels.name(reference["diagnosis"]),
    "location": lambda reference, number, settings, frame: format_location(
        tuple(reference["places"][min(number, len(reference["places"]) - 1)]), settings.grid
    ),
    "size": lambda reference, number, settings, frame: reference["size"],
    "features": lambda reference, number, settings, frame: ", ".join(reference["features"]),
    "bbox": lambda reference, number, settings, frame: write_box(frame, reference["boxes"][number]),
    "polygon": _polygon,
}
"""Part -> text of the part for the lesion with this number."""
