"""Width and height of the image of a row, from its columns or from the header of the file, and their comparison."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from toolkit.data.cells import cell, text_of
from toolkit.data.json_stream import Row
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import DataError, ImageError, MissingImage, RowProblem
from toolkit.images import ImagePolicy, read_image_header
from toolkit.images.ref import ImageRef
from toolkit.scoring.regions import Coordinates, Frame, Size

CHECKED = 200
"""Images of a split whose size is compared with their row. Resized copies differ in the first of them."""


def check_image_sizes(split: str, samples: Sequence[Sample]) -> None:
    """Check the first ``CHECKED`` images of a split. A missing image is reported by the scan of the images.

    Raises:
        DataError: An image has another size than its row says.
    """
    for sample in samples[:CHECKED]:
        expected = sample.fields.get("image_size", sample.fields.get("size"))
        if expected is None or not sample.images:
            continue
        try:
            size = read_image_header(replace(sample.images[0], crop=None), ImagePolicy()).size
        except ImageError:
            continue
        if size != expected:
            raise DataError(
                "data.image_size_differs",
                "an image must have the width and height of its row, because its coordinates are in these pixels",
                place=f"{split}: {sample.shown}",
                value=f"{size[0]} x {size[1]} instead of {' x '.join(map(str, expected))}",
                remedy="Use the images that were annotated, or scale coordinates, width and height to these images.",
            )


def image_size(row: Row, origin: RowOrigin, image: ImageRef, place: str) -> Size:
    """Return width and height of a row's image, from its columns or from the header of the image.

    Raises:
        RowProblem: Neither is available.
    """
    width, height = (text_of(cell(row, origin, side)) for side in ("width", "height"))
    if width and height:
        try:
            sides = int(float(width)), int(float(height))
        except (ValueError, OverflowError):
            sides = (0, 0)
        if min(sides) < 1:
            rule = "width and height must be numbers above 0"
            raise RowProblem("data.image_size_not_number", rule, place=place, value=(width, height))
        return sides
    try:
        return _size(replace(image, crop=None))
    except ImageError as error:
        rule = "the row must have width and height, or an image that can be opened"
        raise MissingImage("data.image_size_unknown", rule, place=place, value=error.code) from None


def coordinate_frame(size: Size, policy: ImagePolicy, coordinates: Coordinates) -> Frame:
    """Return the coordinate frame of an image or crop that the policy prepares for the model."""
    return Frame(size, policy.output_size(size), coordinates, policy.content_box(size))


@lru_cache(maxsize=1 << 14)
def _size(image: ImageRef) -> Size:
    return read_image_header(image, ImagePolicy()).size
