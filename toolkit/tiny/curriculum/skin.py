"""Lessons about skin lesions: which, where, and its box, one part at a time; never a whole answer."""

import json
from functools import partial
from typing import NamedTuple

import cv2

from toolkit.scoring.regions import COORDINATES, Box, Frame, centre, find_regions, format_location, locate_box
from toolkit.synthetic.lesions import Photo, make_lesion
from toolkit.synthetic.radiograph import Rng
from toolkit.tasks.lesion.labels import HAM10000
from toolkit.tasks.lesion.prompt import WHAT, WHERE
from toolkit.tiny.curriculum.base import Drawing, ImageLabels, QuestionAnswer, one_of, weighted

SIZE = (160, 120)
"""Width and height in pixels that pictures are drawn with."""
CODES = tuple(label.code for label in HAM10000.labels)
FREQUENCIES = dict.fromkeys(CODES, 1.0)
FRAME = Frame(SIZE, SIZE, COORDINATES["hundred"])
"""The tiny model's coordinates run from 0 to 100 over each side."""


CELLS = 4
"""A map has so many cells a side: as many as the picture has image tokens."""


class Skin(NamedTuple):
    """What is to be seen: the name of the disease, the box of each lesion, the largest first, and the map."""

    name: str
    boxes: tuple[Box, ...]
    map: str
    """How much of each cell is covered, from 0 to 9, one line a row."""


def draw(seed: int, number: int) -> Drawing:
    """A photograph of a lesion, or of two, and who asks about it."""
    photo = Photo(number, make_lesion(seed, number, FREQUENCIES), (seed, number))
    picture = photo.draw(SIZE)
    regions, _ = find_regions(picture.mask > 0)
    shares = cv2.resize(picture.mask, (CELLS, CELLS), interpolation=cv2.INTER_AREA) / 255
    boxes = tuple(region.box for region in regions)
    skin = Skin(HAM10000.name(photo.lesion.dx), boxes, "\n".join("".join(str(round(9 * s)) for s in r) for r in shares))
    edges = (edge / side for edge, side in zip(boxes[0], SIZE * 2, strict=True))
    truth = ImageLabels(((CODES.index(photo.lesion.dx), len(CODES)),), (*edges, *shares.ravel().tolist()))
    return Drawing(picture.pixels, partial(lesson, skin), truth)


def lesson(skin: Skin, rng: Rng) -> QuestionAnswer:
    """A lesson about this picture, of a kind drawn by weight."""
    return weighted(_KINDS, rng)(skin, rng)


def texts(seed: int, number: int, rng: Rng) -> tuple[str, ...]:
    """What lessons on a made-up box say, for the tokenizer."""
    corner, size = rng.uniform(0, 0.6, 2) * SIZE, rng.uniform(0.1, 0.4, 2) * SIZE
    skin = Skin(one_of([label.name for label in HAM10000.labels], rng), ((*corner, *(corner + size)),), "")
    return *lesson(skin, rng), *lesson(skin, rng), one_of(WHERE + WHAT, rng)


def _map(skin: Skin, rng: Rng) -> QuestionAnswer:
    """Cell by cell, so that the model learns to look before it learns to measure."""
    return QuestionAnswer("Map:", skin.map)


def _name(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer(one_of(("Diagnosis:", "Name the disease."), rng), skin.name)


def _place(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer(one_of(("Place:", "In which part of the picture?"), rng), _place_of(skin.boxes[0]))


def _middle(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer("Point at the largest lesion.", json.dumps(FRAME.write(centre(skin.boxes[0]))))


def _box(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer("Box of the largest lesion:", _box_of(skin.boxes[0]))


def _tagged_name(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer("Write <diagnosis>.", f"<diagnosis>{skin.name}</diagnosis>")


def _tagged_places(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer(
        "Write <location>.", "\n".join(f"<location>{_place_of(box)}</location>" for box in skin.boxes)
    )


def _tagged_boxes(skin: Skin, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer("Write <bbox>.", "\n".join(f"<bbox>{_box_of(box)}</bbox>" for box in skin.boxes))


_KINDS = (
    (_map, 0.25),
    (_name, 0.06),
    (_place, 0.07),
    (_middle, 0.17),
    (_box, 0.17),
    (_tagged_name, 0.05),
    (_tagged_places, 0.06),
    (_tagged_boxes, 0.17),
)


def _place_of(box: Box) -> str:
    return format_location(locate_box(box, SIZE))


def _box_of(box: Box) -> str:
    return json.dumps(FRAME.write(box))
