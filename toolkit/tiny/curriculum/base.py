"""What a lesson is, and what lessons of every subject share."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from toolkit.synthetic.lesion_shapes import Bytes
from toolkit.synthetic.radiograph import Rng

Kind = TypeVar("Kind")


class QuestionAnswer(NamedTuple):
    """One turn: what the user asks about the picture, and the answer."""

    question: str
    answer: str


class ImageLabels(NamedTuple):
    """What a picture shows, without words.

    ``classes``: which of how many, for each thing that has classes; ``numbers``: places and shares, from 0 to 1.
    """

    classes: tuple[tuple[int, int], ...] = ()
    numbers: tuple[float, ...] = ()


class Drawing(NamedTuple):
    """A picture (height x width x 3: red, green, blue), what makes lessons about it, and what it shows."""

    pixels: Bytes
    lesson: Callable[[Rng], QuestionAnswer]
    truth: ImageLabels


class Subject(NamedTuple):
    """One kind of picture.

    ``draw``: seed and number -> Drawing. ``texts``: seed, number and generator -> texts for the tokenizer. ``weight``:
    its share of the pictures; ``turns``: lessons about one picture in one conversation, which sees it once for all.
    """

    name: str
    draw: Callable[[int, int], Drawing]
    texts: Callable[[int, int, Rng], Sequence[str]]
    weight: float
    turns: int


def weighted(kinds: Sequence[tuple[Kind, float]], rng: Rng) -> Kind:
    """One of the kinds, drawn by its weight."""
    return kinds[int(rng.choice(len(kinds), p=[weight for _, weight in kinds]))][0]


def one_of(texts: Sequence[str], rng: Rng) -> str:
    """One of the texts."""
    return texts[int(rng.integers(len(texts)))]


def between(tags: tuple[str, str], text: str) -> str:
    """The text on a line of its own between two tags."""
    return f"{tags[0]}\n{text}\n{tags[1]}"
