"""One picture and its mask, measured: sizes, regions, area, and whether they fit together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import DataError, ImageError
from toolkit.images import ImagePolicy, ImageStore
from toolkit.images.ref import ImageRef
from toolkit.scoring.regions import Mask, find_regions, fit_mask, read_mask

_HEADERS = ImageStore(ImagePolicy(), memory_mb=0)


@dataclass(frozen=True, slots=True)
class Job:
    """A picture, its mask if it has one, and the masks of features (in words) if there are any."""

    image: Path
    mask: Path | None = None
    features: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MaskMeasurements:
    """What the files say, in pixels of the picture; all of it JSON values.

    Attributes:
        size: width and height of the upright picture.
        boxes, polygons: of the mask's regions, the largest first; None without a mask, empty where it shows nothing.
        area_share: share of the picture under the mask, 0 to 1.
        specks: regions that are too small to be lesions.
        scaled: the mask had another size than the picture.
        features: those whose mask is not empty, in alphabetical order; None where no mask of a feature is there.
        problem: why picture and mask cannot be used; None: they can.
    """

    size: list[int]
    boxes: list[list[int]] | None = None
    polygons: list[list[list[int]]] | None = None
    area_share: float | None = None
    specks: int = 0
    scaled: bool = False
    features: list[str] | None = None
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields by name, not copied: ``asdict`` takes as long for an outline as OpenCV for its mask."""
        return {name: getattr(self, name) for name in self.__slots__}


def measure(job: Job) -> MaskMeasurements:
    """Look at the picture's header and at the pixels of its masks."""
    try:
        size = _HEADERS.read_image_header(ImageRef(job.image)).size
        features = _features(job.features)
        mask = None if job.mask is None else read_mask(job.mask)
    except (ImageError, DataError) as error:
        return MaskMeasurements([0, 0], problem=f"{error.place}: {error.rule}")
    if mask is None:
        return MaskMeasurements(list(size), features=features)
    mask_size, fitted = (mask.shape[1], mask.shape[0]), fit_mask(mask, size)
    if fitted is None:
        text = "the mask is {} x {}, the picture {} x {}: they do not belong together"
        return MaskMeasurements(list(size), problem=f"{job.mask}: {text.format(*mask_size, *size)}")
    return _measure_mask(fitted, features, scaled=mask_size != size)


def _measure_mask(mask: Mask, features: list[str] | None, *, scaled: bool) -> MaskMeasurements:
    regions, specks = find_regions(mask)
    height, width = mask.shape
    return MaskMeasurements(
        size=[width, height],
        boxes=[[int(edge) for edge in region.box] for region in regions],
        polygons=[[[int(x), int(y)] for x, y in region.polygon] for region in regions],
        area_share=np.count_nonzero(mask) / mask.size,
        specks=specks,
        scaled=scaled,
        features=features,
    )


def _features(masks: Mapping[str, Path]) -> list[str] | None:
    return sorted(name for name, file in masks.items() if read_mask(file).any()) if masks else None
