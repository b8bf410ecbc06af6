"""Pixels: what a decoder hands on, in the file's own depth and units, before it is windowed and reduced."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """One decoded picture.

    Attributes:
        values: (height, width) grey or (height, width, 3) colours, in native byte order.
        bits: bits a channel that the file stores.
        window: (low, high) that the file itself names, in the units of ``values``.
        alpha: (height, width) opacity in [0, 1] that ``values`` were not yet multiplied by; None: opaque.
        transparent: share of the pixels that are not opaque (also where the decoder has composed them already).
        hidden: (height, width) True where the pixels mean nothing (DICOM padding); they become black.
        inverted: low values are bright (MONOCHROME1, TIFF's WhiteIsZero).
        bgr: the colours stand in OpenCV's order.
    """

    values: Array
    bits: int
    window: tuple[float, float] | None = None
    alpha: NDArray[np.float32] | None = None
    transparent: float = 0.0
    hidden: NDArray[np.bool_] | None = None
    inverted: bool = False
    bgr: bool = False

    @property
    def is_8_bit(self) -> bool:
        """Unsigned bytes need no window."""
        return self.values.dtype == np.uint8
