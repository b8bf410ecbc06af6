"""The order of a rating sheet: pages, and images that are shown twice for intra-rater agreement."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from toolkit.errors import DataError

MOST_ON_A_PAGE = 100
MOST_REPEATED = 0.5


@dataclass(frozen=True, slots=True)
class SheetOptions:
    """Order and size of a sheet.

    Attributes:
        seed: of the order and of the selection of repeated images.
        repeated: fraction of the images that are shown twice, from 0 to 0.5. If it is above 0, every page with at least
            two images repeats at least one.
        per_page: images of a page, repeats included, from 2 to 100.
    """

    seed: int = 0
    repeated: float = 0.1
    per_page: int = MOST_ON_A_PAGE

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            DataError: a value is out of its range.
        """
        if not 0 <= self.repeated <= MOST_REPEATED:
            rule = f"the fraction of repeated images must be from 0 to {MOST_REPEATED}"
            raise DataError("imagegen.repeated_fraction_out_of_range", rule, place="repeated", value=self.repeated)
        if not 2 <= self.per_page <= MOST_ON_A_PAGE:
            rule = f"a page must have from 2 to {MOST_ON_A_PAGE} images"
            raise DataError("imagegen.page_size_out_of_range", rule, place="per_page", value=self.per_page)


def page_orders(count: int, options: SheetOptions) -> tuple[tuple[int, ...], ...]:
    """Return the images of each page in the order in which they are shown. An image is on one page only.

    The order is random. A repeated image is from the first half of its page, and comes again in the second half: at
    least half of the page's images are between the two.

    Args:
        count: number of images.
        options: seed, fraction of repeated images, and size of a page.

    Returns:
        For each page, indices from 0 to count - 1. A repeated image has its index twice.

    >>> page_orders(3, SheetOptions(repeated=0))
    ((2, 0, 1),)
    """
    rng = np.random.default_rng(options.seed)
    order = [int(index) for index in rng.permutation(count)]
    n_pages = -(-count // _distinct_per_page(options))
    borders = [count * page // n_pages for page in range(n_pages + 1)]
    return tuple(_with_repeats(order[start:stop], options, rng) for start, stop in pairwise(borders))


def _distinct_per_page(options: SheetOptions) -> int:
    fitting = (n for n in range(1, options.per_page + 1) if n + _repeats(n, options.repeated) <= options.per_page)
    return max(fitting)


def _repeats(distinct: int, fraction: float) -> int:
    """Return the number of repeated images of a page."""
    if not fraction:
        return 0
    return min(distinct // 2, max(1, round(fraction * distinct)))


def _with_repeats(images: Sequence[int], options: SheetOptions, rng: np.random.Generator) -> tuple[int, ...]:
    half = len(images) // 2
    firsts = rng.choice(half, size=_repeats(len(images), options.repeated), replace=False) if half else ()
    again: dict[int, list[int]] = {}
    for first in firsts:
        again.setdefault(int(rng.integers(first + half, len(images))), []).append(images[first])
    return tuple(shown for place, image in enumerate(images) for shown in (image, *again.get(place, ())))
