"""Turns about skin lesions: diagnosis, location and bounding box, one part of the answer at a time."""

import json
from functools import partial
from typing import NamedTuple

import cv2

from tests.tiny_training.turns import Example, ImageLabels, QuestionAnswer, one_of, weighted
from toolkit.scoring.regions import COORDINATES, Box, Frame, centre, find_regions, format_location, locate_box
from toolkit.synthetic import Rng
from toolkit.synthetic.lesions import Photo, make_lesion
from toolkit.tasks.lesion.diagnoses import HAM10000
from toolkit.tasks.lesion.prompt import WHAT, WHERE

SIZE = (160, 120)
"""Width and height of a drawn image in pixels."""
CODES = tuple(label.code for label in HAM10000.labels)
FREQUENCIES = dict.fromkeys(CODES, 1.0)
FRAME = Frame(SIZE, SIZE, COORDINATES["hundred"])
"""The tiny model writes coordinates from 0 to 100 on each side."""

CELLS = 4
"""Cells per side of a coverage map. The map has as many cells as an image has image tokens."""


class Skin(NamedTuple):
    """Ground truth of an image: diagnosis, bounding boxes (largest first) and coverage map."""

    name: str
    boxes: tuple[Box, ...]
    map: str
    """Covered fraction of each cell as a digit from 0 to 9, one line per row."""


def draw(seed: int, number: int) -> Example:
    """Return a photograph of one or two lesions, its turns and its labels."""
    photo = Photo(number, make_lesion(seed, number, FREQUENCIES), (seed, number))
    image = photo.draw(SIZE)
    regions, _ = find_regions(image.mask > 0)
    coverage = cv2.resize(image.mask, (CELLS, CELLS), interpolation=cv2.INTER_AREA) / 255
    boxes = tuple(region.box for region in regions)
    skin = Skin(
        HAM10000.name(photo.lesion.dx), boxes, "\n".join("".join(str(round(9 * s)) for s in r) for r in coverage)
    )
    edges = (edge / side for edge, side in zip(boxes[0], SIZE * 2, strict=True))
    labels = ImageLabels(((CODES.index(photo.lesion.dx), len(CODES)),), (*edges, *coverage.ravel().tolist()))
    return Example(image.pixels, partial(make_turn, skin), labels)


def make_turn(skin: Skin, rng: Rng) -> QuestionAnswer:
    """Return a turn about this image. Its kind is drawn by weight."""
    return weighted(_KINDS, rng)(skin, rng)


def texts(seed: int, number: int, rng: Rng) -> tuple[str, ...]:
    """Return the texts of turns about a random box, for the tokenizer."""
    corner, size = rng.uniform(0, 0.6, 2) * SIZE, rng.uniform(0.1, 0.4, 2) * SIZE
    skin = Skin(one_of([label.name for label in HAM10000.labels], rng), ((*corner, *(corner + size)),), "")
    return *make_turn(skin, rng), *make_turn(skin, rng), one_of(WHERE + WHAT, rng)


def _map(skin: Skin, rng: Rng) -> QuestionAnswer:
    """Return a turn about the coverage map, an easier target than a box."""
    return QuestionAnswer("Map:", skin.map)


def _name(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer(one_of(("Diagnosis:", "Name the disease."), rng), skin.name)


def _location(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer(one_of(("Place:", "In which part of the image?"), rng), _location_of(skin.boxes[0]))


def _middle(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer("Point at the largest lesion.", json.dumps(FRAME.write(centre(skin.boxes[0]))))


def _box(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer("Box of the largest lesion:", _box_of(skin.boxes[0]))


def _tagged_name(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer("Write <diagnosis>.", f"<diagnosis>{skin.name}</diagnosis>")


def _tagged_locations(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer(
        "Write <location>.", "\n".join(f"<location>{_location_of(box)}</location>" for box in skin.boxes)
    )


def _tagged_boxes(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer("Write <bbox>.", "\n".join(f"<bbox>{_box_of(box)}</bbox>" for box in skin.boxes))


_KINDS = (
    (_map, 0.25),
    (_name, 0.06),
    (_location, 0.07),
    (_middle, 0.17),
    (_box, 0.17),
    (_tagged_name, 0.05),
    (_tagged_locations, 0.06),
    (_tagged_boxes, 0.17),
)


def _location_of(box: Box) -> str:
    return format_location(locate_box(box, SIZE))


def _box_of(box: Box) -> str:
    return json.dumps(FRAME.write(box))
