"""Coordinates as a model family writes them, and the way from them to pixels of the original and back.

Qwen2-VL and Qwen3-VL were trained on integers of 0 to 1000 over the image, Qwen2.5-VL on pixels of the image that
its processor makes (sides of multiples of 28; Qwen2.5-VL technical report, arXiv 2502.13923, section 2.1), Gemma's
relatives on 0 to 1000. The tiny model learns two digits.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from toolkit.errors import Problem, RecipeError
from toolkit.scoring.regions.boxes import Box, Size


@dataclass(frozen=True, slots=True)
class Coordinates:
    """One convention: numbers run from 0 to ``top`` over each side; None: pixels of the image that is shown.

    ``multiple``: the model's processor rounds the sides of what is shown to multiples of this.
    """

    name: str
    top: int | None
    digits: int = 0
    multiple: int = 1


COORDINATES: Mapping[str, Coordinates] = {
    "thousand": Coordinates("thousand", 1000),
    "hundred": Coordinates("hundred", 100),
    "unit": Coordinates("unit", 1, digits=3),
    "pixels": Coordinates("pixels", None),
    "pixels28": Coordinates("pixels28", None, multiple=28),
}

FAMILIES: Mapping[str, str] = {
    r"qwen2[._]5[-_]?vl": "pixels28",
    r"qwen2[-_]?vl": "thousand",
    r"qwen3[-_]?vl": "thousand",
    r"gemma|paligemma": "thousand",
    r"^tiny$": "hundred",
}
"""Pattern in a model's name -> its convention. The first that fits."""


def choose_coordinates(wanted: str, model: str, key: str = "coordinates") -> Coordinates:
    """Return the convention that a recipe names, or with ``auto`` that of the model's family; ``key`` is where it does.

    Raises:
        RecipeError: ``auto``, and the name is of no family that is known here.
    """
    if wanted != "auto":
        return COORDINATES[wanted]
    for pattern, name in FAMILIES.items():
        if re.search(pattern, model.lower()):
            return COORDINATES[name]
    rule, remedy = f"must be one of {', '.join(COORDINATES)} for {model}", "Look them up in the model card."
    raise RecipeError([Problem("recipe.coordinates_unknown", rule, key, wanted, remedy)])


@dataclass(frozen=True, slots=True)
class Frame:
    """One image: the original's size, the size that the image policy reduces it to, and the convention."""

    original: Size
    reduced: Size
    coordinates: Coordinates

    @property
    def span(self) -> tuple[float, float]:
        """What the largest x and y are written as."""
        if self.coordinates.top is not None:
            return self.coordinates.top, self.coordinates.top
        multiple = self.coordinates.multiple
        width, height = (max(multiple, round(side / multiple) * multiple) for side in self.reduced)
        return width, height

    def write(self, numbers: Iterable[float]) -> list[float]:
        """x, y, x, y, … in pixels of the original as the model writes them, rounded as it does."""
        digits = self.coordinates.digits
        scaled = [value * factor for value, factor in zip(numbers, self._factors(), strict=False)]
        return [round(value, digits) if digits else int(value + 0.5) for value in scaled]

    def read(self, numbers: Iterable[float]) -> list[float]:
        """x, y, x, y, … as the model writes them in pixels of the original. Nothing is rounded or clipped."""
        return [value / factor for value, factor in zip(numbers, self._factors(), strict=False)]

    def read_box(self, numbers: Box) -> Box:
        """Return a box as the model writes it, in pixels of the original."""
        x1, y1, x2, y2 = self.read(numbers)
        return x1, y1, x2, y2

    def _factors(self) -> Iterable[float]:
        factors = [span / side for span, side in zip(self.span, self.original, strict=True)]
        while True:
            yield from factors
