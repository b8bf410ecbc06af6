"""Types of the curriculum, and helpers that every image domain uses."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from toolkit.synthetic import Bytes, Rng

Kind = TypeVar("Kind")

SIDE = 112
"""Pixels per side of the images that the model receives."""


class QuestionAnswer(NamedTuple):
    """One turn of a conversation: a question about the image and its answer."""

    question: str
    answer: str


class ImageLabels(NamedTuple):
    """Labels of an image for vision pretraining.

    ``classes`` has (index, number of classes) per classification. ``numbers`` has coordinates and fractions in [0, 1].
    """

    classes: tuple[tuple[int, int], ...] = ()
    numbers: tuple[float, ...] = ()


class Example(NamedTuple):
    """An RGB image of shape (height, width, 3), a function that makes turns about it, and its labels."""

    pixels: Bytes
    make_turn: Callable[[Rng], QuestionAnswer]
    labels: ImageLabels


class ImageDomain(NamedTuple):
    """One kind of image.

    ``draw``: seed and number -> Example. ``texts``: seed, number and generator -> texts for the tokenizer. ``weight``:
    its fraction of the images. ``turns``: turns about one image in one conversation, which encodes it only once.
    """

    name: str
    draw: Callable[[int, int], Example]
    texts: Callable[[int, int, Rng], Sequence[str]]
    weight: float
    turns: int


def weighted(kinds: Sequence[tuple[Kind, float]], rng: Rng) -> Kind:
    """Return one of the kinds, drawn by weight."""
    return kinds[int(rng.choice(len(kinds), p=[weight for _, weight in kinds]))][0]


def one_of(texts: Sequence[str], rng: Rng) -> str:
    """Return one of the texts, drawn uniformly."""
    return texts[int(rng.integers(len(texts)))]


def between(tags: tuple[str, str], text: str) -> str:
    """Return the text on its own line between two tags."""
    return f"{tags[0]}\n{text}\n{tags[1]}"
