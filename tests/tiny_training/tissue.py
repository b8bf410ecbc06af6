"""Turns about tiles of tissue: the name of the class, with and without a list of classes."""

from functools import partial

import numpy as np

from tests.tiny_training.turns import SIDE, Example, ImageLabels, QuestionAnswer, one_of, weighted
from toolkit.synthetic import Rng
from toolkit.synthetic.tissue import TISSUES, draw_tile

NAMES = {
    "ADI": "adipose",
    "BACK": "background",
    "DEB": "debris",
    "LYM": "lymphocytes",
    "MUC": "mucus",
    "MUS": "smooth muscle",
    "NORM": "normal colon mucosa",
    "STR": "cancer-associated stroma",
    "TUM": "colorectal adenocarcinoma epithelium",
}
"""Code -> name of the class in an answer."""


def draw(seed: int, number: int) -> Example:
    """Return a tile, its turns and its label."""
    rng = np.random.default_rng([seed, number])
    code = tuple(TISSUES)[int(rng.integers(len(TISSUES)))]
    labels = ImageLabels(classes=((tuple(TISSUES).index(code), len(TISSUES)),))
    return Example(draw_tile(code, SIDE, rng), partial(make_turn, NAMES[code]), labels)


def make_turn(name: str, rng: Rng) -> QuestionAnswer:
    """Return a turn about a tile of this class. Its kind is drawn by weight."""
    return weighted(_KINDS, rng)(name, rng)


def texts(seed: int, number: int, rng: Rng) -> tuple[str, ...]:
    """Return the texts of a turn about a random class, for the tokenizer."""
    return (*make_turn(one_of(tuple(NAMES.values()), rng), rng),)


def _name(name: str, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer(one_of(("Tissue:", "Name the tissue."), rng), name)


def _choice(name: str, rng: Rng) -> QuestionAnswer:
    others = [other for other in NAMES.values() if other != name]
    listed = [name, *(others[i] for i in rng.permutation(len(others))[: int(rng.integers(1, 4))])]
    lines = [f"- {listed[i]}" for i in rng.permutation(len(listed))]
    return QuestionAnswer("\n".join(["Which class?", *lines]), name)


_KINDS = ((_name, 0.6), (_choice, 0.4))
