"""Coordinate conventions of model families, and conversion to and from pixels of the original image.

A model can only name coordinates well in the convention that it was pretrained on: its scale, its order (x or y first)
and its format. Rows, scores and results therefore use pixels of the original image, x first. Only prompts, targets and
completions use the convention of the model.

| family | convention | source |
|---|---|---|
| Qwen2-VL | 0 to 1000 | arXiv 2409.12191, section 2.1 |
| Qwen2.5-VL | pixels after its processor, sides of multiples of 28, ``bbox_2d`` | arXiv 2502.13923, section 2.1 |
| Qwen3-VL | 0 to 1000, ``bbox_2d`` | its repository: relative coordinates since Qwen3-VL |
| PaliGemma | 1024 location tokens, y first | arXiv 2407.07726, section 3.2 |
| MedGemma 1.5 | 0 to 1000, y first, ``box_2d`` | its localization notebook |
| Gemma 4 | 0 to 1000, y first, ``box_2d`` | its announcement on the Hugging Face blog |
| Gemma 3, MedGemma 1 | 0 to 1000 | none is documented, so this is only what the toolkit teaches |
| tiny | 0 to 100 | its training |
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import Problem, RecipeError
from toolkit.scoring.regions.boxes import Size


@dataclass(frozen=True, slots=True)
class Coordinates:
    """One convention: numbers from 0 to ``top`` on each side, or pixels of the shown image if ``top`` is None.

    ``multiple``: the processor rounds the sides of the shown image to multiples of it. ``first``: the axis of the first
    number. ``tokens``: a box is four tokens such as ``<loc0512>``, from 0 to ``top - 1``.
    """

    name: str
    top: int | None
    digits: int = 0
    multiple: int = 1
    first: str = "x"
    tokens: bool = False

    @property
    def corners(self) -> str:
        """How a prompt describes a box."""
        if self.tokens:
            return "<locY1><locX1><locY2><locX2>"
        return "[x1, y1, x2, y2]" if self.first == "x" else "[y1, x1, y2, x2]"

    @property
    def point(self) -> str:
        """How a prompt describes a point."""
        return "[x, y]" if self.first == "x" else "[y, x]"


COORDINATES: Mapping[str, Coordinates] = {
    "thousand": Coordinates("thousand", 1000),
    "thousand_yx": Coordinates("thousand_yx", 1000, first="y"),
    "hundred": Coordinates("hundred", 100),
    "unit": Coordinates("unit", 1, digits=3),
    "pixels": Coordinates("pixels", None),
    "pixels28": Coordinates("pixels28", None, multiple=28),
    "locations": Coordinates("locations", 1024, first="y", tokens=True),
}


CoordinatesKey = Literal["auto", "thousand", "thousand_yx", "hundred", "unit", "pixels", "pixels28", "locations"]
"""Values of a recipe key for coordinates in completions."""


@dataclass(frozen=True, slots=True)
class Family:
    """The convention of a model family.

    ``key``: the key of a box in a JSON list, or empty for tags and tokens. ``padded``: the family was trained on images
    with black margins to a square (Google's notebooks of MedGemma).
    """

    coordinates: Coordinates
    key: str = ""
    padded: bool = False


FAMILIES: Mapping[str, Family] = {
    "tiny": Family(COORDINATES["hundred"]),
    "gemma-3": Family(COORDINATES["thousand"], "bbox_2d"),
    "gemma-4": Family(COORDINATES["thousand_yx"], "box_2d"),
    "medgemma-1": Family(COORDINATES["thousand"], "bbox_2d", padded=True),
    "medgemma-1.5": Family(COORDINATES["thousand_yx"], "box_2d", padded=True),
    "paligemma": Family(COORDINATES["locations"]),
    "qwen2-vl": Family(COORDINATES["thousand"], "bbox_2d"),
    "qwen2.5-vl": Family(COORDINATES["pixels28"], "bbox_2d"),
    "qwen3-vl": Family(COORDINATES["thousand"], "bbox_2d"),
}
"""Value of ``model.family`` -> convention."""

MODEL_TYPES: Mapping[str, tuple[str, ...]] = {
    "gemma3": ("gemma-3", "medgemma-1", "medgemma-1.5"),
    "gemma3n": ("gemma-3",),
    "gemma4": ("gemma-4",),
    "paligemma": ("paligemma",),
    "qwen2_vl": ("qwen2-vl",),
    "qwen2_5_vl": ("qwen2.5-vl",),
    "qwen3_vl": ("qwen3-vl",),
    "qwen3_vl_moe": ("qwen3-vl",),
}
"""``model_type`` in config.json -> the families that have it."""

# MedGemma 1.5 has one size, 4B (its model card), so a MedGemma of 27B is MedGemma 1.
NAMES: Mapping[str, str] = {
    r"^tiny$": "tiny",
    r"qwen2[._]5[-_]?vl": "qwen2.5-vl",
    r"qwen2[-_]?vl": "qwen2-vl",
    r"qwen3[-_]?vl": "qwen3-vl",
    r"medgemma[-_ ]?1[._]5(?!\d)": "medgemma-1.5",
    r"medgemma-27b|medgemma[-_ ]1(?![\w.])": "medgemma-1",
    r"paligemma": "paligemma",
    # A digit or b after it is a size: gemma-4b is not Gemma 4.
    r"(?<![a-z0-9])gemma[-_]?3(?![0-9b])": "gemma-3",
    r"(?<![a-z0-9])gemma[-_]?4(?![0-9b])": "gemma-4",
}
"""Pattern in a model name in lower case -> family. A name that says several families says none."""

_HUB_NAMES: Mapping[str, str] = {r"^[\w.-]+/medgemma-4b-(it|pt)(?![\w.])": "medgemma-1"}
"""Pattern in a name on the Hub, where the release is part of the name, -> family."""

_PATH = re.compile(r"^(?:~|\.{1,2})?[/\\]|^[A-Za-z]:[/\\]")


def find_family(model: str, family: str | None = None) -> str | None:
    """Return the family of a model, or None if it is unknown or could be one of several.

    A folder is recognized by ``model_type`` in its config.json. If several families have this type, the name of the
    folder, ``_name_or_path``, and the base model and title of the model card must agree on one.

    Args:
        model: ``model.name`` of the recipe.
        family: ``model.family`` of the recipe, which takes precedence.

    >>> find_family("google/medgemma-1.5-4b-it"), find_family("google/medgemma-4b-it"), find_family("/models/medgemma")
    ('medgemma-1.5', 'medgemma-1', None)
    """
    if family is not None:
        return family
    # A relative path is a folder too if it exists. Loading prefers it to a model of this name on the Hub.
    if not _PATH.match(model) and not Path(model).is_dir():
        return _named(model, {**_HUB_NAMES, **NAMES})
    folder = Path(model).expanduser()
    kind = _model_type(folder)
    possible = tuple(FAMILIES) if kind is None else MODEL_TYPES.get(kind, ())
    if len(possible) == 1:
        return possible[0]
    found = {_named(folder.name, NAMES), *(_named(name, {**_HUB_NAMES, **NAMES}) for name in _names_in(folder))}
    found &= set(possible)
    return found.pop() if len(found) == 1 else None


def choose_coordinates(requested: str, model: str, key: str = "coordinates", family: str | None = None) -> Coordinates:
    """Return the convention that a recipe names, or with ``auto`` that of the model family.

    ``key`` is the recipe key for the error message.

    Raises:
        RecipeError: ``auto`` and an unknown model family.
    """
    return COORDINATES[requested] if requested != "auto" else choose_family(model, key, family).coordinates


def choose_family(model: str, key: str = "coordinates", family: str | None = None) -> Family:
    """Return the convention of a model's family.

    Raises:
        RecipeError: The family is unknown.
    """
    found = find_family(model, family)
    if found is not None:
        return FAMILIES[found]
    rule = f"the family of {model} must be known, because its coordinates depend on it ({key})"
    remedy = f"Set model.family to one of {', '.join(FAMILIES)}, or {key} to one of {', '.join(COORDINATES)}."
    raise RecipeError([Problem("recipe.coordinates_unknown", rule, "model.family", family, remedy)])


def find_key(coordinates: Coordinates, model: str, family: str | None = None) -> str:
    """Return the key of a box in a JSON list for this convention and model. Empty for tags and tokens.

    >>> find_key(COORDINATES["thousand_yx"], "google/medgemma-1.5-4b-it"), find_key(COORDINATES["unit"], "acme/model")
    ('box_2d', 'bbox_2d')
    """
    found = find_family(model, family)
    if coordinates.tokens or (found is not None and not FAMILIES[found].key):
        return ""
    return "bbox_2d" if coordinates.first == "x" else "box_2d"


@lru_cache(maxsize=64)
def is_padded(model: str, family: str | None = None) -> bool:
    """Return whether a model was trained on images with margins to a square. An unknown family counts as not.

    >>> is_padded("google/medgemma-4b-it"), is_padded("google/gemma-3-4b-it"), is_padded("tiny")
    (True, False, False)
    """
    found = find_family(model, family)
    return found is not None and FAMILIES[found].padded


def _named(name: str, patterns: Mapping[str, str]) -> str | None:
    """Return the only family that a name says."""
    found = {family for pattern, family in patterns.items() if re.search(pattern, name.lower())}
    return found.pop() if len(found) == 1 else None


def _model_type(folder: Path) -> str | None:
    kind = _config(folder).get("model_type")
    return kind if isinstance(kind, str) else None


def _names_in(folder: Path) -> Iterator[str]:
    """Yield the names of the model that its files have."""
    name = _config(folder).get("_name_or_path")
    if isinstance(name, str):
        yield name
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")[: 1 << 16]
    except (OSError, UnicodeDecodeError):
        return
    for pattern in (r"^base_model:\s*(?:-\s*)?['\"]?([\w./-]+)", r"^#\s+(.*)$"):
        if found := re.search(pattern, card, re.MULTILINE):
            yield found[1]


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Frame:
    """Conversion for one image: size of the original, size after the image policy, and the convention.

    ``content`` is x1, y1, x2, y2 of the original inside the reduced image, if it has margins. Coordinates of the model
    are those of the whole reduced image.
    """

    original: Size
    reduced: Size
    coordinates: Coordinates
    content: tuple[int, int, int, int] | None = None

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
        """Return pixels x, y, x, y, … of the original in the model's convention, rounded to its digits."""
        digits, tokens, top = self.coordinates.digits, self.coordinates.tokens, self.coordinates.top
        scaled = [value * factor + start for value, (factor, start) in zip(numbers, self._factors(), strict=False)]
        # round() would take halves to the even neighbour, so equal distances could get different integers.
        rounded = [round(value, digits) if digits else int(value + 0.5) for value in scaled]
        if tokens and top is not None:  # The right and lower edges have no token of their own.
            rounded = [min(value, top - 1) for value in rounded]
        return self._in_order(rounded)

    def read(self, numbers: Iterable[float]) -> list[float]:
        """Return pixels x, y, x, y, … of the original from the model's convention. Nothing is rounded or clipped."""
        ordered = self._in_order(list(numbers))
        return [(value - start) / factor for value, (factor, start) in zip(ordered, self._factors(), strict=False)]

    def _in_order(self, numbers: list[float]) -> list[float]:
        """Return the numbers with each pair swapped if the model names y first. A single number stays in its place."""
        if self.coordinates.first == "x":
            return numbers
        pairs = [numbers[start : start + 2] for start in range(0, len(numbers), 2)]
        return list(chain.from_iterable(reversed(pair) for pair in pairs))

    @property
    def ranges(self) -> str:
        """How a prompt describes the range of both axes, in the model's order."""
        width, height = (f"{end:g}" for end in self.span)
        axes = [f"x from 0 to {width}", f"y from 0 to {height}"]
        return ", ".join(axes if self.coordinates.first == "x" else reversed(axes))

    def _factors(self) -> Iterator[tuple[float, float]]:
        """Yield factor and start of x and y in turn: the model's number is pixel * factor + start."""
        factors = [(span / side, 0.0) for span, side in zip(self.span, self.original, strict=True)]
        if self.content is not None:
            x1, y1, x2, y2 = self.content
            units = [span / side for span, side in zip(self.span, self.reduced, strict=True)]
            shown = ((x1, x2), (y1, y2))
            factors = [
                ((end - start) / side * unit, start * unit)
                for (start, end), side, unit in zip(shown, self.original, units, strict=True)
            ]
        while True:
            yield from factors
