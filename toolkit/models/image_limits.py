"""The pixel limit of a processor with which a server sees images as the toolkit does, without its reduction.

The toolkit reduces the longest side of an image to ``images.max_side``. Processors of the Qwen family limit the number
of pixels of an image instead, by default to far more. No pixel limit equals a limit of the side for all aspect ratios,
so it is chosen for the images of the data. Other processors resize every image to a fixed size.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from toolkit.images import ImagePolicy
from toolkit.runfolder import read_json, write_json

FILES = ("processor_config.json", "preprocessor_config.json")
"""Files of a processor with the limits of images. The first one has them below ``image_processor``."""

RADIOGRAPH = (2500, 2048)
"""Width and height whose aspect ratio is used if no image of the data is reduced."""

MAX_SIZES = 200
"""Most frequent image sizes that are compared."""

UNLIMITED = 1 << 62

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PixelLimit:
    """The limit of an exported processor.

    Attributes:
        max_pixels: largest number of pixels of an image after the processor's resize.
        sizes: number of image sizes of the data that ``images.max_side`` reduces.
        same: those that the processor alone resizes to the same patches.
        cell: side of the square in pixels that becomes one token.
    """

    max_pixels: int
    sizes: int
    same: int
    cell: int

    @property
    def max_tokens(self) -> int:
        """Return the largest number of tokens of an image, which is how llama.cpp limits its size."""
        return self.max_pixels // self.cell**2


def find_pixel_limit(processor: Any, policy: ImagePolicy, sizes: Iterable[Size]) -> PixelLimit | None:
    """Return the pixel limit, or None if the processor does not limit pixels.

    Images that were reduced to ``images.max_side`` before are never reduced further. Among such limits, this one gives
    the same patches without that reduction for the most images.

    Args:
        processor: the processor of the base model.
        policy: how images are reduced.
        sizes: (width, height) of the images of the data, before the reduction.
    """
    grid = _Grid.of(processor)
    if grid is None:
        return None
    known = Counter(sizes)
    reduced = Counter({size: count for size, count in known.items() if policy.output_size(size) != size})
    compared = dict(reduced.most_common(MAX_SIZES)) or {_reference(policy): 1}
    seen = {size: grid.resize(policy.output_size(size), grid.most) for size in compared}
    # Every reduced image must stay as it is, not only the compared ones. The processor compares its limit with the
    # sides rounded to cells.
    least = max(math.prod(grid.resize(policy.output_size(size), UNLIMITED)) for size in {*known, *compared})
    limits = {min(max(limit, least), grid.most) for size in compared for limit in grid.limits(size, seen[size])}

    def agreement(limit: int) -> int:
        return sum(count for size, count in compared.items() if grid.resize(size, limit) == seen[size])

    best = max(sorted(limits), key=agreement)
    same = sum(grid.resize(size, best) == seen.get(size) for size in reduced)
    return PixelLimit(best, len(reduced), same, grid.cell)


def write_pixel_limit(folder: Path, limit: PixelLimit) -> None:
    """Set the limit in the processor's files in ``folder``."""
    for name in FILES:
        file = folder / name
        if not file.is_file():
            continue
        settings = read_json(file)
        image = settings.get("image_processor", settings)
        size = image.get("size") or {}
        if "longest_edge" in size:
            shortest = min(size.get("shortest_edge", limit.max_pixels), limit.max_pixels)
            image["size"] = {**size, "longest_edge": limit.max_pixels, "shortest_edge": shortest}
        if image.get("max_pixels") is not None:
            image["max_pixels"] = limit.max_pixels
        write_json(file, settings)


@dataclass(frozen=True, slots=True)
class _Grid:
    """How a processor of the Qwen family resizes: to whole cells, between two numbers of pixels."""

    cell: int
    least: int
    most: int

    @classmethod
    def of(cls, processor: Any) -> "_Grid | None":
        image: Any = getattr(processor, "image_processor", None)
        size = getattr(image, "size", None) or {}
        least, most = size.get("shortest_edge"), size.get("longest_edge")
        if least is None or most is None or not hasattr(image, "merge_size"):
            return None
        return cls(image.patch_size * image.merge_size, least, most)

    def resize(self, size: Size, most: int) -> Size:
        """Return (width, height) after the resize with this limit. A strip that the processor rejects has (0, 0)."""
        try:
            height, width = smart_resize(size[1], size[0], self.cell, min(self.least, most), most)
        except ValueError:
            return 0, 0
        return int(width), int(height)

    def limits(self, size: Size, wanted: Size) -> Iterator[int]:
        """Yield limits of which the smallest one gives ``wanted`` for ``size``, if any limit does."""
        ratio = size[0] / size[1]
        # The processor rounds down to cells: the sides of `limit` pixels in the image's aspect ratio.
        least = max(wanted[0] ** 2 / ratio, wanted[1] ** 2 * ratio)
        yield math.prod(wanted)
        yield from (math.ceil(least) + more for more in (0, 1, 2))


def _reference(policy: ImagePolicy) -> Size:
    """Return a size with the aspect ratio of a radiograph that the policy reduces."""
    times = max(1, math.ceil((policy.max_side + 1) / RADIOGRAPH[0]))
    return RADIOGRAPH[0] * times, RADIOGRAPH[1] * times
