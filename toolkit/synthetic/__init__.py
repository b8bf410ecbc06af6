"""Drawing primitives for synthetic images whose answers are visible in them."""

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
"""Decides all that is random in an image. Each image has its own generator, so images can be drawn in any order."""

Bytes = NDArray[np.uint8]
"""Pixels of 8 bits, shape (height, width) or (height, width, 3)."""
