"""What a report draws over an image: boxes and outlines of the reference and of an answer."""

from toolkit.data.sample import Answer, Sample
from toolkit.data.shapes import Shape, box_shape, outline_shape
from toolkit.scoring.regions import find_regions
from toolkit.tasks.lesion.rewards import reference_mask


def shapes(sample: Sample, answer: Answer | None) -> tuple[Shape, ...]:
    """Return boxes and outlines. ``answer`` is None for the reference, whose outlines come from the mask if it has one.

    Raises:
        DataError: the mask cannot be read, or does not fit its image.
    """
    if answer is None:
        return _of_reference(sample)
    found: list[Shape] = []
    for lesion in answer.values.get("lesions", ()):
        label = lesion["diagnosis"] or ""
        found += [box_shape(lesion["box"], label)] if lesion["box"] is not None else []
        found += [outline_shape(lesion["polygon"], label)] if lesion["polygon"] is not None else []
    return tuple(found)


def _of_reference(sample: Sample) -> tuple[Shape, ...]:
    reference = sample.reference
    label = reference["diagnosis"] or ""
    boxes = [box_shape(box, label) for box in reference["boxes"]]
    if reference["mask"] is None:
        outlines = [outline_shape(polygon) for polygon in reference["polygons"]]
    else:
        mask = reference_mask(sample)
        outlines = [outline_shape(region.polygon) for region in find_regions(mask)[0]] if mask is not None else []
    return *boxes, *outlines
