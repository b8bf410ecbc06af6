"""Decoded pixels at the bit depth and in the units of the file, before windowing and resizing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """One decoded image.

    Attributes:
        values: (height, width) grey or (height, width, 3) colours, in native byte order.
        bits: Stored bits per channel.
        window: (low, high) from the file itself, in the units of ``values``.
        alpha: (height, width) opacity in [0, 1] that is not yet applied to ``values``. None means opaque.
        transparent: Fraction of pixels that are not opaque, including pixels that the decoder has composited.
        hidden: (height, width) True for DICOM padding, which becomes black.
        inverted: Whether low values are bright (MONOCHROME1, TIFF's WhiteIsZero).
        bgr: Whether the colours are in OpenCV's channel order.
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
        """Whether the values are unsigned bytes, which need no window."""
        return self.values.dtype == np.uint8
