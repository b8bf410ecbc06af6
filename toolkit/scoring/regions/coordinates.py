"""Coordinate conventions of model families, and conversion to and from pixels of the original image.

A model can only name coordinates well in the convention that it was pretrained on. Rows, scores and results therefore
use pixels of the original image, and only prompts, targets and completions use the convention of the model.

Qwen2-VL and Qwen3-VL were trained on integers from 0 to 1000 over the image. Qwen2.5-VL was trained on pixels of the
image after its processor, with sides of multiples of 28 (Qwen2.5-VL technical report, arXiv 2502.13923, section 2.1).
The Gemma family uses 0 to 1000. The tiny model uses 0 to 100.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from toolkit.errors import Problem, RecipeError
from toolkit.scoring.regions.boxes import Size


@dataclass(frozen=True, slots=True)
class Coordinates:
    """One convention: numbers from 0 to ``top`` on each side, or pixels of the shown image if ``top`` is None.

    ``multiple``: the processor rounds the sides of the shown image to multiples of it.
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
"""Pattern in a model name -> convention. The first match is used."""


def choose_coordinates(requested: str, model: str, key: str = "coordinates") -> Coordinates:
    """Return the convention that a recipe names, or with ``auto`` that of the model family.

    ``key`` is the recipe key for the error message.

    Raises:
        RecipeError: ``auto`` and an unknown model family.
    """
    if requested != "auto":
        return COORDINATES[requested]
    for pattern, name in FAMILIES.items():
        if re.search(pattern, model.lower()):
            return COORDINATES[name]
    rule, remedy = f"must be one of {', '.join(COORDINATES)} for {model}", "Look them up in the model card."
    raise RecipeError([Problem("recipe.coordinates_unknown", rule, key, requested, remedy)])


@dataclass(frozen=True, slots=True)
class Frame:
    """Conversion for one image: size of the original, size after the image policy, and the convention."""

    original: Size
    reduced: Size
    coordinates: Coordinates

    @property
    def span(self) -> tuple[float, float]:
        """The largest x and y in the model's convention."""
        if self.coordinates.top is not None:
            return self.coordinates.top, self.coordinates.top
        multiple = self.coordinates.multiple
        # Qwen2.5-VL counts pixels after this rounding, so x and y have slightly different factors.
        width, height = (max(multiple, round(side / multiple) * multiple) for side in self.reduced)
        return width, height

    def write(self, numbers: Iterable[float]) -> list[float]:
        """Return x, y, x, y, … from pixels of the original to the model's convention, rounded to its digits."""
        digits = self.coordinates.digits
        scaled = [value * factor for value, factor in zip(numbers, self._factors(), strict=False)]
        # round() would take halves to the even neighbour, so equal distances could get different integers.
        return [round(value, digits) if digits else int(value + 0.5) for value in scaled]

    def read(self, numbers: Iterable[float]) -> list[float]:
        """Return x, y, x, y, … from the model's convention to pixels of the original. Nothing is rounded or clipped."""
        return [value / factor for value, factor in zip(numbers, self._factors(), strict=False)]

    def _factors(self) -> Iterable[float]:
        factors = [span / side for span, side in zip(self.span, self.original, strict=True)]
        while True:
            yield from factors
