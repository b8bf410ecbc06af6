"""How a picture becomes 8-bit RGB: one frozen policy, and the record of what it did to one picture."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from PIL import Image

from toolkit import recipe
from toolkit.errors import Problem, RecipeError

Window = Literal["auto", "range", "percentile", "dicom"]
Resample = Literal["area", "bilinear", "bicubic", "lanczos", "nearest"]
WindowSource = Literal["none", "range", "percentile", "dicom"]

RENDERING = 1
"""Raised whenever the same file and policy would give other pixels, so that cached pictures are made again."""

PLACEHOLDER_GREY = 128


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """Everything that decides the pixels of a picture; the fields are those of the recipe's ``[images]``.

    Pictures of 8 bits are left as they are, whatever ``window`` says (only a DICOM file's own window applies to
    them). ``dicom`` refuses deeper pictures that bring no window; ``auto`` takes their data range.
    """

    max_side: int = 896
    window: Window = "auto"
    percentiles: tuple[float, float] = (0.5, 99.5)
    resample: Resample = "area"
    max_pixels: int = 120_000_000

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            text = f"two rising percentages within 0 to 100 are needed (found {self.percentiles})"
            raise RecipeError([Problem("images.percentiles", text)])

    @classmethod
    def of(cls, images: recipe.Images) -> "ImagePolicy":
        """The policy of a recipe.

        Raises:
            RecipeError: ``percentiles`` do not rise or leave 0 to 100.
        """
        return cls(images.max_side, images.window, images.percentiles, images.resample, images.max_pixels)

    @property
    def key(self) -> str:
        """16 hex digits that change with everything that changes pixels, and with nothing else."""
        percentiles = self.percentiles if self.window == "percentile" else None
        facts = repr((RENDERING, self.max_side, self.window, percentiles, self.resample))
        return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()

    def reduced(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) after reduction: the longest side at most ``max_side``, never enlarged, at least 1."""
        longest = max(size)
        if longest <= self.max_side:
            return size
        width, height = (max(1, round(side * self.max_side / longest)) for side in size)
        return width, height


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What happened to one picture on its way to 8-bit RGB.

    Attributes:
        format: PNG, JPEG, TIFF, DICOM, … as the file's content says.
        source_size: (width, height) of the upright original, or of the crop that is shown of it, in pixels.
        size: (width, height) of the result.
        bits: bits a channel that the file stores.
        window: (low, high) in the file's units (after DICOM's rescale) that became black and white; None: left as is.
        window_from: where the window came from.
        below, above: share of the pixels (0 to 1) outside the window, which became black or white.
        nonfinite: NaN and infinities in a float picture; NaN becomes black.
        orientation: EXIF's or TIFF's number (1 to 8); the result is upright.
        transparent: share of the pixels that were not opaque; they were laid over black.
        placeholder: a grey picture stands here because the file could not be read; ``reason`` says why.
    """

    format: str
    source_size: tuple[int, int]
    size: tuple[int, int]
    bits: int
    window: tuple[float, float] | None = None
    window_from: WindowSource = "none"
    below: float = 0.0
    above: float = 0.0
    nonfinite: int = 0
    orientation: int = 1
    transparent: float = 0.0
    placeholder: bool = False
    reason: str = ""

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y) factors that take a point of the upright original to the result."""
        return self.size[0] / self.source_size[0], self.size[1] / self.source_size[1]

    @property
    def clipped(self) -> float:
        """Share of the pixels outside the window, 0 to 1."""
        return self.below + self.above

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values; ``from_json`` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ImageRecord":
        """The record that ``as_json`` wrote.

        Raises:
            TypeError, ValueError: the values are not those of a record.
        """
        if values["window_from"] not in get_args(WindowSource):
            raise ValueError(values["window_from"])
        pairs = {name: tuple(values[name]) for name in ("source_size", "size", "window") if values[name] is not None}
        return cls(**{**values, **pairs})


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """A picture in mode RGB, the caller's own copy, and its record."""

    image: Image.Image
    record: ImageRecord


def placeholder(policy: ImagePolicy, reason: str) -> LoadedImage:
    """The grey square, ``max_side`` wide, that stands for a file that could not be read."""
    size = (policy.max_side, policy.max_side)
    grey = (PLACEHOLDER_GREY,) * 3
    record = ImageRecord("none", size, size, 8, placeholder=True, reason=reason)
    return LoadedImage(Image.new("RGB", size, grey), record)
