"""Rewards for lesions: diagnosis, place, mask_iou, box_iou, giou, format.

The default weights 0.4, 0.3 and 0.3 of the first three come from earlier skin-lesion scripts. The others train only if
a recipe gives them a weight. ``sample.reference`` and ``answer.values`` are those of the task ``lesion``, in pixels of
the shown image.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.sample import Answer, Reward, Sample
from toolkit.errors import DataError
from toolkit.scoring.regions import (
    Box,
    Location,
    Mask,
    Size,
    box_giou,
    box_iou,
    centre,
    draw_boxes,
    draw_polygons,
    fit_mask,
    locate_box,
    location_score,
    match,
    read_mask,
)
from toolkit.scoring.regions import mask_iou as _mask_iou

EXAMPLE = Sample(
    id="example",
    task="lesion",
    group="lesion-1",
    images=(),
    fields={"requested": ("diagnosis", "location", "bbox"), "size": (100, 100), "grid": 3},
    reference={
        "diagnosis": "mel",
        "boxes": [[10, 10, 40, 40]],
        "places": [[0, 0]],
        "polygons": [],
        "mask": None,
        "crop": None,
    },
)
"""The sample of the worked examples in this file."""


def _answer(**lesion: Any) -> Answer:
    """Return a parsed answer with one lesion, for the examples."""
    whole = {"diagnosis": None, "place": None, "box": None, "polygon": None, **lesion}
    return Answer("…", {"diagnosis": whole["diagnosis"], "lesions": [whole], "unread": []})


def diagnosis(sample: Sample, answer: Answer) -> float | None:
    """Return 1 for the correct diagnosis, or None if it is unknown or not requested. Several diagnoses score 0.

    >>> diagnosis(EXAMPLE, _answer(diagnosis="mel")), diagnosis(EXAMPLE, _answer(diagnosis="nv"))
    (1.0, 0.0)
    """
    if "diagnosis" not in sample.fields["requested"]:
        return None
    return float(answer.values.get("diagnosis") == sample.reference["diagnosis"])


def place(sample: Sample, answer: Answer) -> float | None:
    """Return the mean location score over matched lesions: 1 minus the normalised Manhattan distance on the grid.

    The location is the one that the answer names, or that of its box if the recipe does not request a location. None if
    the lesion's location is unknown.

    >>> place(EXAMPLE, _answer(place=[0, 0])), place(EXAMPLE, _answer(place=[1, 1])), place(EXAMPLE, _answer())
    (1.0, 0.5, 0.0)
    """
    if not sample.reference["places"] or not {"location", "bbox", "polygon"} & set(sample.fields["requested"]):
        return None
    grid = _grid(sample)
    return match(sample.reference["places"], _places(sample, answer), lambda a, b: location_score(b, a, grid))[1]


def box_overlap(sample: Sample, answer: Answer) -> float | None:
    """Return the mean box IoU over matched lesions. Missing and extra boxes count 0. None without a reference box.

    >>> round(box_overlap(EXAMPLE, _answer(box=[10, 10, 40, 25])), 2)
    0.5
    """
    if not _has_boxes(sample):
        return None
    return match(sample.reference["boxes"], _boxes(answer), box_iou)[1]


def giou(sample: Sample, answer: Answer) -> float | None:
    """Return the mean generalised IoU over matched lesions, mapped from [-1, 1] to [0, 1].

    Unlike IoU, it distinguishes near and distant boxes without an overlap.

    >>> giou(EXAMPLE, _answer(box=[10, 10, 40, 40])), giou(EXAMPLE, _answer(box=[10, 10, 40, 25]))
    (1.0, 0.75)
    """
    if not _has_boxes(sample):
        return None
    return match(sample.reference["boxes"], _boxes(answer), lambda a, b: (box_giou(a, b) + 1) / 2)[1]


def mask_iou(sample: Sample, answer: Answer) -> float | None:
    """Return the IoU between the mask of all lesions and all shapes in the answer (polygons, otherwise boxes).

    Lesions are not matched here, because masks of touching lesions have no boundary between them. Missing and extra
    lesions cost their area. Without a mask and polygons in the row, the box is the reference.

    >>> round(mask_iou(EXAMPLE, _answer(box=[10, 10, 40, 25])), 2)
    0.5
    """
    mask = reference_mask(sample)
    if mask is None:
        return box_overlap(sample, answer)
    if not {"bbox", "polygon"} & set(sample.fields["requested"]):
        return None
    size = sample.fields["size"]
    drawn = draw_polygons([one["polygon"] for one in _lesions(answer) if one["polygon"]], size)
    drawn |= draw_boxes([tuple(one["box"]) for one in _lesions(answer) if one["box"] and not one["polygon"]], size)
    return float(_mask_iou(drawn, mask))


def format(sample: Sample, answer: Answer) -> float:
    """Return 1 if every requested part was parsed for every lesion, and nothing was left unparsed.

    >>> format(EXAMPLE, _answer(diagnosis="nv", place=[0, 0], box=[1, 1, 2, 2]))
    1.0
    >>> format(EXAMPLE, _answer(diagnosis="nv"))
    0.0
    """
    lesions = _lesions(answer)
    needed = [_VALUE_OF_PART[part] for part in sample.fields["requested"] if part in _VALUE_OF_PART]
    whole = lesions and all(lesion[name] is not None for lesion in lesions for name in needed)
    return float(bool(whole) and not answer.values["unread"])


REWARDS: Mapping[str, Reward] = {
    "diagnosis": diagnosis,
    "place": place,
    "mask_iou": mask_iou,
    "box_iou": box_overlap,
    "giou": giou,
    "format": format,
}


REWARD_WEIGHTS: Mapping[str, float] = {
    "diagnosis": 0.4,
    "place": 0.3,
    "mask_iou": 0.3,
    "box_iou": 0.0,
    "giou": 0.0,
    "format": 0.0,
}
"""Maps rewards to default weights. A reward with weight 0 is off unless the recipe sets a weight."""

ALL_OR_NOTHING = frozenset({"diagnosis"})
"""Rewards that are 0 or 1 for nearly every answer."""


def why_diagnosis(sample: Sample, answer: Answer) -> str:
    """Return both codes, or why none was parsed."""
    if "diagnosis" not in sample.fields["requested"]:
        return "no diagnosis is requested"
    read = answer.values.get("diagnosis")
    named = sorted({one["diagnosis"] for one in _lesions(answer)} - {None})
    found = read or (f"several ({', '.join(named)})" if named else f"none ({_unread(answer)})")
    return f"read {found}, reference {sample.reference['diagnosis']}"


def why_place(sample: Sample, answer: Answer) -> str:
    """Return the cells as row and column from the upper left."""
    return f"read {_places(sample, answer) or _unread(answer)}, reference {sample.reference['places'] or 'not known'}"


def why_boxes(sample: Sample, answer: Answer) -> str:
    """Return the boxes in pixels of the shown image."""
    read = [[round(edge, 1) for edge in box] for box in _boxes(answer)]
    return f"read {read or _unread(answer)}, reference {sample.reference['boxes'] or 'not known'}"


def why_mask(sample: Sample, answer: Answer) -> str:
    """Return which shapes were compared."""
    outlined = sum(one["polygon"] is not None for one in _lesions(answer))
    boxed = sum(one["box"] is not None and one["polygon"] is None for one in _lesions(answer))
    mask = reference_mask(sample)
    against = "no mask, so the boxes" if mask is None else f"a mask of {np.count_nonzero(mask):,} pixels"
    return f"{outlined} polygons and {boxed} boxes against {against}"


def why_format(sample: Sample, answer: Answer) -> str:
    """Return the missing or unparsed parts."""
    requested = ", ".join(sample.fields["requested"])
    return f"{len(_lesions(answer))} lesions, {requested} requested. Unparsed: {_unread(answer)}"


WHY = {
    "diagnosis": why_diagnosis,
    "place": why_place,
    "mask_iou": why_mask,
    "box_iou": why_boxes,
    "giou": why_boxes,
    "format": why_format,
}
"""Reward -> explanation of its value."""

_VALUE_OF_PART = {"diagnosis": "diagnosis", "location": "place", "bbox": "box", "polygon": "polygon"}


def _unread(answer: Answer) -> str:
    return "; ".join(answer.values.get("unread", ())) or answer.problem or "nothing"


def _lesions(answer: Answer) -> Sequence[Mapping[str, Any]]:
    lesions: Sequence[Mapping[str, Any]] = answer.values.get("lesions", ())
    return lesions


def _boxes(answer: Answer) -> list[Box]:
    """Return the box of each lesion, otherwise the bounding box of its polygon."""
    found = []
    for one in _lesions(answer):
        if one["box"] is not None:
            x1, y1, x2, y2 = one["box"]
            found.append((x1, y1, x2, y2))
        elif one["polygon"] is not None:
            xs, ys = zip(*one["polygon"], strict=True)
            found.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))  # vertices are pixels of the region
    return found


def _places(sample: Sample, answer: Answer) -> list[Location]:
    if "location" in sample.fields["requested"]:
        return [(one["place"][0], one["place"][1]) for one in _lesions(answer) if one["place"] is not None]
    size, grid = sample.fields["size"], _grid(sample)
    inside = [box for box in _boxes(answer) if 0 <= centre(box)[0] <= size[0] and 0 <= centre(box)[1] <= size[1]]
    return [locate_box(box, size, grid) for box in inside]


def _grid(sample: Sample) -> int:
    settings = sample.fields.get("settings")
    return int(settings.grid if settings is not None else sample.fields["grid"])


def _has_boxes(sample: Sample) -> bool:
    return bool(sample.reference["boxes"]) and bool({"bbox", "polygon"} & set(sample.fields["requested"]))


def reference_mask(sample: Sample) -> Mask | None:
    """Return the mask of the shown image from its file, otherwise from the polygons. None: the row has neither."""
    reference, size = sample.reference, sample.fields["size"]
    if reference["mask"] is not None:
        crop = reference["crop"]
        return _shown(reference["mask"], size, None if crop is None else tuple(crop), sample.fields["image_size"])
    if reference["polygons"]:
        return draw_polygons(reference["polygons"], size)
    return None


@lru_cache(maxsize=64)
def _shown(file: str, size: Size, crop: tuple[int, int, int, int] | None, image: Size) -> Mask:
    """Return the reference mask of the shown image or crop. The cache serves the completions of one prompt."""
    # Preparation rejects other readings unless the user chooses one, and both have the same pixels as foreground.
    stored = read_mask(Path(file), "any")
    mask = fit_mask(stored, image)
    if mask is None:
        height, width = stored.shape
        raise DataError(
            "rewards.mask_aspect_ratio_differs",
            f"a mask must have the aspect ratio of its image, {image[0]} x {image[1]} pixels",
            place=file,
            value=f"{width} x {height}",
        )
    if crop is not None:
        mask = mask[crop[1] : crop[3], crop[0] : crop[2]]
    mask.setflags(write=False)
    return mask
