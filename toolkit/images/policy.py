"""ImagePolicy: how an image becomes 8-bit RGB, and ImageRecord: what the policy did to one image."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from PIL import Image

from toolkit import recipe
from toolkit.errors import Problem, RecipeError
from toolkit.recipe.windows import hounsfield_windows
from toolkit.scoring.regions.coordinates import is_padded

Window = Literal["auto", "range", "percentile", "dicom", "fixed", "hu"]
Resample = Literal["area", "bilinear", "bicubic", "lanczos", "nearest"]
Square = Literal["off", "pad", "crop"]
WindowSource = Literal["none", "range", "percentile", "dicom", "fixed", "hu"]

RENDERING = 1
"""Version of the rendering code. It is part of the cache key, so a change of pixels invalidates cached images."""

PLACEHOLDER_GREY = 128


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """Everything that determines the pixels of an image. The first five fields mirror the recipe's ``[images]``.

    8-bit images keep their values for every ``window``. Only a DICOM file's own window applies to them. ``dicom``
    rejects deeper images without a window, and ``auto`` uses their data range. ``fixed`` maps ``centre`` - ``width`` /
    2 to black and ``centre`` + ``width`` / 2 to white (LINEAR_EXACT of PS3.3 C.11.2.1.3.2), in the file's units after
    DICOM's rescale. ``hu`` does the same with ``windows``, one (low, high) or three for red, green and blue. It rejects
    images above 8 bits that are not in Hounsfield units.

    With ``square``, every image becomes ``max_side`` x ``max_side`` and smaller images are enlarged. ``pad`` adds black
    margins, which the record separates from the image. ``crop`` takes the central square.
    """

    max_side: int = 896
    window: Window = "auto"
    percentiles: tuple[float, float] = (0.5, 99.5)
    resample: Resample = "area"
    max_pixels: int = 120_000_000
    centre: float | None = None
    width: float | None = None
    square: Square = "off"
    windows: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        self._check_fixed_window()
        if len(self.windows) not in ((1, 3) if self.window == "hu" else (0,)):
            rule = 'must have one window or three with window = "hu", and none otherwise'
            remedy = "Correct the windows."
            raise RecipeError([Problem("images.windows_malformed", rule, "images.window", self.windows, remedy)])
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            rule, remedy = "must be two numbers, 0 <= lower < upper <= 100", "Correct the numbers."
            value = list(self.percentiles)
            raise RecipeError([Problem("recipe.percentiles_not_rising", rule, "images.percentiles", value, remedy)])

    def _check_fixed_window(self) -> None:
        centre, width = self.centre, self.width
        if self.window != "fixed":
            if (centre, width) != (None, None):
                rule, remedy = 'must be "fixed" with centre and width', 'Set window = "fixed".'
                raise RecipeError([Problem("images.window_not_fixed", rule, "images.window", self.window, remedy)])
        elif centre is None or width is None or not (math.isfinite(centre) and 0 < width < math.inf):
            rule = 'must have a finite centre and a width above 0 with window = "fixed"'
            raise RecipeError(
                [Problem("images.fixed_window_malformed", rule, "images.window", (centre, width), "Correct them.")]
            )

    @classmethod
    def from_recipe(cls, images: recipe.Images, model: recipe.Model) -> "ImagePolicy":
        """Return the policy of a recipe, whose model decides about ``square = "auto"``.

        Raises:
            RecipeError: ``percentiles`` are not increasing numbers from 0 to 100.
        """
        windows = hounsfield_windows(images.window)
        kind: Any = "hu" if windows else images.window
        square: Any = images.square
        if square == "auto":
            square = "pad" if is_padded(model.name, model.family) else "off"
        return cls(
            images.max_side,
            kind,
            images.percentiles,
            images.resample,
            images.max_pixels,
            square=square,
            windows=windows,
        )

    @property
    def key(self) -> str:
        """16 hex digits that change exactly with the fields that affect pixels."""
        percentiles = self.percentiles if self.window == "percentile" else None
        facts: tuple[object, ...] = (RENDERING, self.max_side, self.window, percentiles, self.resample)
        # Newer fields enter the key only if they are used, so that older cache entries stay valid.
        if self.window == "fixed":
            facts += self.fixed_window
        if self.square != "off":
            facts += (self.square,)
        if self.window == "hu":
            facts += (self.windows,)
        return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()

    @property
    def fixed_window(self) -> tuple[float, float]:
        """(low, high) of ``window = "fixed"``."""
        centre, width = self.centre or 0.0, self.width or 0.0
        return centre - width / 2, centre + width / 2

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (width, height) of the result: the longest side is at most ``max_side``, never enlarged, at least 1.

        With ``square``, both sides are ``max_side``.
        """
        return self.content_size(size) if self.square == "off" else (self.max_side, self.max_side)

    def content_box(self, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """Return x1, y1, x2, y2 of an image of this size inside the result. None: it fills the result."""
        width, height = self.content_size(size)
        if self.square != "pad" or width == height:
            return None
        x, y = (self.max_side - width) // 2, (self.max_side - height) // 2
        return x, y, x + width, y + height

    def content_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (width, height) of an image of this size inside the result, without the margins of ``square``."""
        longest = max(size)
        if longest <= self.max_side and self.square == "off":
            return size
        # At least one pixel: a strip of 3 x 1000 would otherwise lose a side.
        width, height = (max(1, round(side * self.max_side / longest)) for side in size)
        return width, height


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """How one image became 8-bit RGB.

    Attributes:
        format: PNG, JPEG, TIFF, DICOM, …, from the file's content.
        source_size: (width, height) in pixels of the upright original, or of its crop.
        size: (width, height) of the result.
        bits: Stored bits per channel.
        window: (low, high) in the file's units (after DICOM's rescale) that became black and white. None without a
            window.
        window_from: Source of the window.
        below, above: Fraction of pixels outside the window, in [0, 1], which became black or white.
        nonfinite: Number of NaN and infinite values in a float image. NaN becomes black.
        orientation: EXIF or TIFF number, 1 to 8. The result is upright.
        transparent: Fraction of pixels that were not opaque. They are composited over black.
        placeholder: Whether this is a grey placeholder for an unreadable file. ``reason`` has the error.
        content: x1, y1, x2, y2 of the image inside the result, x2 and y2 exclusive, with ``square = "pad"``. Around it
            is the black margin. None means no margin.
        windows: (low, high) of red, green and blue, if each has its own window. ``window`` is the first one.
        notes: codes of ``scan.NOTES``: what a reader must know about this image.
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
    content: tuple[int, int, int, int] | None = None
    windows: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y) factors from the upright original to the result, or to its ``content``."""
        x1, y1, x2, y2 = self.content or (0, 0, *self.size)
        return (x2 - x1) / self.source_size[0], (y2 - y1) / self.source_size[1]

    @property
    def clipped(self) -> float:
        """Fraction of pixels outside the window, in [0, 1]."""
        return self.below + self.above

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values for ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ImageRecord":
        """Return the record that ``as_json`` wrote.

        Raises:
            TypeError, ValueError: The values are not those of a record.
        """
        if values["window_from"] not in get_args(WindowSource):
            raise ValueError(values["window_from"])
        listed = ("source_size", "size", "window", "content")
        pairs = {name: tuple(values[name]) for name in listed if values.get(name) is not None}
        windows = tuple((low, high) for low, high in values.get("windows", ()))
        return cls(**{**values, **pairs, "windows": windows, "notes": tuple(values.get("notes", ()))})


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """An image in mode RGB, owned by the caller, and its record."""

    image: Image.Image
    record: ImageRecord


def placeholder(policy: ImagePolicy, reason: str) -> LoadedImage:
    """Return the grey square of side ``max_side`` that replaces an unreadable file."""
    size = (policy.max_side, policy.max_side)
    grey = (PLACEHOLDER_GREY,) * 3
    record = ImageRecord("none", size, size, 8, placeholder=True, reason=reason)
    return LoadedImage(Image.new("RGB", size, grey), record)
