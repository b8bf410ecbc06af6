"""Render pixels to 8-bit RGB by a policy: window, resize, orientation.

The window always comes from the full-size image, never from the resized one. 16-bit integers are clipped to the
window, resized at their own depth and then reduced to 8 bits, which costs a fraction of converting at full size. Other
types are first mapped to [0, 1].
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolkit.errors import ImageError
from toolkit.images.header import Header
from toolkit.images.policy import ImagePolicy, ImageRecord, LoadedImage, Resample
from toolkit.images.ref import ImageRef
from toolkit.images.window import Array, Pixels, Windowed, choose_window, further_windows

NARROW = 1024
"""Integer windows narrower than this are resized as floats, because rounding to integers would be visible."""

OPENCV_FILTER = {"area": cv2.INTER_AREA, "nearest": cv2.INTER_NEAREST}
PILLOW_FILTER = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Pillow widens these filters when it shrinks an image. OpenCV does not, so it aliases."""

UPRIGHT: dict[int, Callable[[Array], Array]] = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""EXIF orientation -> function that makes an image upright."""


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """A rendered image in compact form: 8-bit (height, width) grey or (height, width, 3) RGB, and its record."""

    values: NDArray[np.uint8]
    record: ImageRecord

    def load(self) -> LoadedImage:
        """Return a new image in mode RGB, owned by the caller."""
        colours = cv2.cvtColor(self.values, cv2.COLOR_GRAY2RGB) if self.values.ndim == 2 else self.values
        return LoadedImage(Image.fromarray(colours), self.record)


def render(pixels: Pixels, header: Header, policy: ImagePolicy, ref: ImageRef) -> Reduced:
    """Return the image, or the crop in ``ref``, rendered by ``policy``. The window comes from the whole image.

    Raises:
        ImageError: The policy needs DICOM's own window and a deep image has none, or the crop leaves the image.
    """
    # Before the crop and the resize: a crop must look as it does in the whole image, and averaging hides the extremes.
    window = choose_window(pixels, policy, ref.path)
    further = further_windows(pixels, policy, window)
    if policy.square == "crop":
        ref = replace(ref, crop=central_square(ref.crop or (0, 0, *header.size)))
    turn = None if header.upright else UPRIGHT.get(header.orientation)
    # A crop is given in the upright image, so it is cut from it. A whole image is turned at the end, when it is small.
    if ref.crop is not None:
        pixels, turn = _cut(pixels, turn, ref), None
    height, width = pixels.values.shape[:2]
    size = policy.content_size((width, height))
    if further:
        small = np.dstack([_to_8_bits(pixels, one, size, policy.resample) for one in further])
    else:
        small = _to_8_bits(pixels, window, size, policy.resample)
    if pixels.bgr:
        small = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
    if turn is not None:
        small = np.ascontiguousarray(turn(small))
    shown = crop_size(ref.crop) if ref.crop else header.size
    # Without the black margins of a square
    constant = ("images.constant",) if (small == small[0, 0]).all() else ()
    small, content = _padded(small, policy)
    record = _record(pixels, header, shown, window, small)
    windows = tuple((one.low, one.high) for one in further)
    notes = (*header_notes(header, ref), *_window_notes(pixels, policy, window), *constant)
    return Reduced(small, replace(record, content=content, windows=windows, notes=notes))


def header_notes(header: Header, ref: ImageRef) -> tuple[str, ...]:
    """Return the codes of ``scan.NOTES`` that follow from the header."""
    first = ("images.first_frame",) if header.frames > 1 and not ref.frame and not ref.axis else ()
    return *first, *header.notes


def _window_notes(pixels: Pixels, policy: ImagePolicy, window: Windowed | None) -> Iterator[str]:
    """Yield the codes of ``scan.NOTES`` that follow from the window."""
    if window is None:
        if policy.window == "hu":
            yield "images.not_windowed"
        return
    if pixels.values.ndim == 3 and window.source != "dicom":
        yield "images.colour_stretched"
    if window.source == "hu" and not np.any(pixels.values < 0):
        yield "images.no_value_below_zero"


def central_square(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return the largest centred square in the box x1, y1, x2, y2.

    >>> central_square((0, 0, 7, 4))
    (1, 0, 5, 4)
    """
    width, height = crop_size(box)
    side = min(width, height)
    x, y = box[0] + (width - side) // 2, box[1] + (height - side) // 2
    return x, y, x + side, y + side


def _padded(small: Array, policy: ImagePolicy) -> tuple[Array, tuple[int, int, int, int] | None]:
    """Return the image centred in a black square and its box there. The box is None if the image fills the result."""
    height, width = small.shape[:2]
    content = policy.content_box((width, height))
    if content is None:
        return small, None
    x1, y1, x2, y2 = content
    square = np.zeros((policy.max_side, policy.max_side, *small.shape[2:]), small.dtype)
    square[y1:y2, x1:x2] = small
    return square, content


def crop_size(crop: tuple[int, int, int, int]) -> tuple[int, int]:
    """Return (width, height) of x1, y1, x2, y2."""
    return crop[2] - crop[0], crop[3] - crop[1]


def _cut(pixels: Pixels, turn: Callable[[Array], Array] | None, ref: ImageRef) -> Pixels:
    """Return the part of the upright image that the crop in ``ref`` selects."""
    x1, y1, x2, y2 = ref.crop or (0, 0, 0, 0)

    def part(values: Array) -> Array:
        upright = values if turn is None else turn(values)
        height, width = upright.shape[:2]
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            rule = f"the crop must be inside the image of {width} x {height} pixels"
            raise ImageError("images.crop_outside_image", rule, place=ref.path, value=ref.crop)
        return np.ascontiguousarray(upright[y1:y2, x1:x2])

    alpha, hidden = (None if one is None else part(one) for one in (pixels.alpha, pixels.hidden))
    return replace(pixels, values=part(pixels.values), alpha=alpha, hidden=hidden)


def _record(
    pixels: Pixels, header: Header, shown: tuple[int, int], window: Windowed | None, small: Array
) -> ImageRecord:
    record = ImageRecord(
        header.format,
        shown,
        (small.shape[1], small.shape[0]),
        pixels.bits,
        orientation=header.orientation,
        transparent=pixels.transparent,
    )
    return record if window is None else window.add_to(record)


def _to_8_bits(pixels: Pixels, window: Windowed | None, size: tuple[int, int], how: Resample) -> Array:
    small: Array
    if pixels.alpha is not None or pixels.hidden is not None:
        return _from_fractions(pixels, window, size, how)
    if window is None:
        small = resize(pixels.values, size, how)
    elif _fits_integers(pixels.values, window):
        small = _scaled(resize(window.clipped(pixels.values), size, how), window)
    else:
        return _from_fractions(pixels, window, size, how)
    return 255 - small if pixels.inverted else small


def _fits_integers(values: Array, window: Windowed) -> bool:
    """Return whether the image can be resized at its own depth, without a float copy at full size."""
    return values.dtype in (np.uint16, np.int16) and window.high - window.low >= NARROW


def _scaled(small: Array, window: Windowed) -> Array:
    """Return [low, high] mapped to 0..255 and rounded. ``small`` has 16 bits, or is float if a filter overshot."""
    if small.dtype == np.float32:
        small = small.clip(window.low, window.high)
    factor = 255 / (window.high - window.low)
    scaled: Array = cv2.convertScaleAbs(small, alpha=factor, beta=-window.low * factor)
    return scaled


def _from_fractions(pixels: Pixels, window: Windowed | None, size: tuple[int, int], how: Resample) -> Array:
    small: Array = np.rint(resize(_fractions(pixels, window), size, how) * 255).clip(0, 255).astype(np.uint8)
    return small


def _fractions(pixels: Pixels, window: Windowed | None) -> Array:
    """Return full-size values in [0, 1]. Hidden and transparent pixels are black."""
    fractions: Array = pixels.values / np.float32(255) if window is None else window.fractions(pixels.values)
    if pixels.inverted:
        fractions = 1 - fractions
    if pixels.hidden is not None:
        fractions = np.where(pixels.hidden, np.float32(0), fractions)
    if pixels.alpha is not None:
        fractions = fractions * (pixels.alpha if fractions.ndim == 2 else pixels.alpha[..., None])
    return fractions


def resize(values: Array, size: tuple[int, int], how: Resample) -> Array:
    """Return ``values`` at ``size`` (width, height), antialiased except for ``nearest``.

    ``area`` enlarges by bilinear interpolation, because the mean over a fraction of one pixel is that pixel.
    """
    if values.shape[1::-1] == size:
        return values
    if how in OPENCV_FILTER:
        enlarged = max(size) > max(values.shape[:2])
        method = cv2.INTER_LINEAR if enlarged and how == "area" else OPENCV_FILTER[how]
        small: Array = cv2.resize(values, size, interpolation=method)
        return small
    if values.dtype == np.uint8:
        return np.asarray(Image.fromarray(values).resize(size, PILLOW_FILTER[how]))
    planes = values[..., None] if values.ndim == 2 else values
    floats = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(planes, 2, 0)]
    return np.stack([np.asarray(plane.resize(size, PILLOW_FILTER[how])) for plane in floats], 2).reshape(
        *size[::-1], *values.shape[2:]
    )
