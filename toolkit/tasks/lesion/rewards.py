"""Rewards for lesions: diagnosis, place, mask_iou, box_iou, giou, format.

Default weights 0.4, 0.3 and 0.3 for the first three are those of the skin scripts before this toolkit; the others train
only where a recipe gives them a weight. ``sample.reference`` and ``answer.values`` are those of the task ``lesion``:
pixels of the picture that is shown.
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
    Mask,
    Place,
    Size,
    box_giou,
    box_iou,
    centre,
    draw_boxes,
    draw_polygons,
    fit_mask,
    match,
    place_of,
    place_score,
    read_mask,
)
from toolkit.scoring.regions import mask_iou as _mask_iou

EXAMPLE = Sample(
    id="example",
    task="lesion",
    group="lesion-1",
    images=(),
    fields={"asked": ("diagnosis", "location", "bbox"), "size": (100, 100), "grid": 3},
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


def _given(**lesion: Any) -> Answer:
    """An answer of one lesion, as the parser gives it, for the examples."""
    whole = {"diagnosis": None, "place": None, "box": None, "polygon": None, **lesion}
    return Answer("…", {"diagnosis": whole["diagnosis"], "lesions": [whole], "unread": []})


def diagnosis(sample: Sample, answer: Answer) -> float | None:
    """1 for the right diagnosis; None where it is not known or not asked for. Several diagnoses are none.

    >>> diagnosis(EXAMPLE, _given(diagnosis="mel")), diagnosis(EXAMPLE, _given(diagnosis="nv"))
    (1.0, 0.0)
    """
    if "diagnosis" not in sample.fields["asked"]:
        return None
    return float(answer.values.get("diagnosis") == sample.reference["diagnosis"])


def place(sample: Sample, answer: Answer) -> float | None:
    """The mean over matched lesions of 1 minus the steps on the grid over the most there can be.

    The place that the answer names, or where the recipe does not ask for it, that of its box. None where the lesion's
    place is not known.

    >>> place(EXAMPLE, _given(place=[0, 0])), place(EXAMPLE, _given(place=[1, 1])), place(EXAMPLE, _given())
    (1.0, 0.5, 0.0)
    """
    if not sample.reference["places"] or not {"location", "bbox", "polygon"} & set(sample.fields["asked"]):
        return None
    grid = _grid(sample)
    return match(sample.reference["places"], _places(sample, answer), lambda a, b: place_score(b, a, grid))[1]


def box_overlap(sample: Sample, answer: Answer) -> float | None:
    """Mean box IoU over matched lesions, a missing and an extra box counting 0; None without a reference box.

    >>> round(box_overlap(EXAMPLE, _given(box=[10, 10, 40, 25])), 2)
    0.5
    """
    if not _has_boxes(sample):
        return None
    return match(sample.reference["boxes"], _boxes(answer), box_iou)[1]


def giou(sample: Sample, answer: Answer) -> float | None:
    """Mean generalised IoU over matched lesions, brought from [-1, 1] to [0, 1]: it also tells near from far.

    >>> giou(EXAMPLE, _given(box=[10, 10, 40, 40])), giou(EXAMPLE, _given(box=[10, 10, 40, 25]))
    (1.0, 0.75)
    """
    if not _has_boxes(sample):
        return None
    return match(sample.reference["boxes"], _boxes(answer), lambda a, b: (box_giou(a, b) + 1) / 2)[1]


def mask_iou(sample: Sample, answer: Answer) -> float | None:
    """IoU of everything the answer outlines with the mask of all lesions: polygons, else boxes, drawn pixel by pixel.

    So a missing and an extra lesion cost their area. Without a mask (and without polygons in the row) it is the box's.

    >>> round(mask_iou(EXAMPLE, _given(box=[10, 10, 40, 25])), 2)
    0.5
    """
    mask = _reference_mask(sample)
    if mask is None:
        return box_overlap(sample, answer)
    if not {"bbox", "polygon"} & set(sample.fields["asked"]):
        return None
    size = sample.fields["size"]
    drawn = draw_polygons([one["polygon"] for one in _lesions(answer) if one["polygon"]], size)
    drawn |= draw_boxes([tuple(one["box"]) for one in _lesions(answer) if one["box"] and not one["polygon"]], size)
    return float(_mask_iou(drawn, mask))


def format(sample: Sample, answer: Answer) -> float:
    """1 where every part that is asked for was read for every lesion named, and nothing was unreadable.

    >>> format(EXAMPLE, _given(diagnosis="nv", place=[0, 0], box=[1, 1, 2, 2])), format(EXAMPLE, _given(diagnosis="nv"))
    (1.0, 0.0)
    """
    lesions, needed = _lesions(answer), [_FOUND_AS[part] for part in sample.fields["asked"] if part in _FOUND_AS]
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
"""reward -> default weight. 0: the reward is off unless the recipe gives it a weight."""

ALL_OR_NOTHING = frozenset({"diagnosis"})
"""Rewards that are 0 or 1 for nearly every answer."""


def why_diagnosis(sample: Sample, answer: Answer) -> str:
    """Both codes, or why none was read."""
    if "diagnosis" not in sample.fields["asked"]:
        return "no diagnosis is asked for"
    read = answer.values.get("diagnosis")
    named = sorted({one["diagnosis"] for one in _lesions(answer)} - {None})
    found = read or (f"several ({', '.join(named)})" if named else f"none ({_unread(answer)})")
    return f"read {found}, reference {sample.reference['diagnosis']}"


def why_place(sample: Sample, answer: Answer) -> str:
    """The cells, row and column from the upper left."""
    return f"read {_places(sample, answer) or _unread(answer)}, reference {sample.reference['places'] or 'not known'}"


def why_boxes(sample: Sample, answer: Answer) -> str:
    """The boxes in pixels of the picture that is shown."""
    read = [[round(edge, 1) for edge in box] for box in _boxes(answer)]
    return f"read {read or _unread(answer)}, reference {sample.reference['boxes'] or 'not known'}"


def why_mask(sample: Sample, answer: Answer) -> str:
    """What was drawn against what."""
    outlined = sum(one["polygon"] is not None for one in _lesions(answer))
    boxed = sum(one["box"] is not None and one["polygon"] is None for one in _lesions(answer))
    mask = _reference_mask(sample)
    against = "no mask, so the boxes" if mask is None else f"a mask of {np.count_nonzero(mask):,} pixels"
    return f"{outlined} polygons and {boxed} boxes against {against}"


def why_format(sample: Sample, answer: Answer) -> str:
    """The parts that lack, or what could not be read."""
    asked = ", ".join(sample.fields["asked"])
    return f"{len(_lesions(answer))} lesions, {asked} asked; unreadable: {_unread(answer)}"


WHY = {
    "diagnosis": why_diagnosis,
    "place": why_place,
    "mask_iou": why_mask,
    "box_iou": why_boxes,
    "giou": why_boxes,
    "format": why_format,
}
"""reward -> the reason for its value, in words."""

_FOUND_AS = {"diagnosis": "diagnosis", "location": "place", "bbox": "box", "polygon": "polygon"}


def _unread(answer: Answer) -> str:
    return "; ".join(answer.values.get("unread", ())) or answer.problem or "nothing"


def _lesions(answer: Answer) -> Sequence[Mapping[str, Any]]:
    lesions: Sequence[Mapping[str, Any]] = answer.values.get("lesions", ())
    return lesions


def _boxes(answer: Answer) -> list[Box]:
    """The box of each lesion, else the one around its polygon."""
    found = []
    for one in _lesions(answer):
        if one["box"] is not None:
            x1, y1, x2, y2 = one["box"]
            found.append((x1, y1, x2, y2))
        elif one["polygon"] is not None:
            xs, ys = zip(*one["polygon"], strict=True)
            found.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))  # vertices are pixels of the region
    return found


def _places(sample: Sample, answer: Answer) -> list[Place]:
    if "location" in sample.fields["asked"]:
        return [(one["place"][0], one["place"][1]) for one in _lesions(answer) if one["place"] is not None]
    size, grid = sample.fields["size"], _grid(sample)
    inside = [box for box in _boxes(answer) if 0 <= centre(box)[0] <= size[0] and 0 <= centre(box)[1] <= size[1]]
    return [place_of(box, size, grid) for box in inside]


def _grid(sample: Sample) -> int:
    settings = sample.fields.get("settings")
    return int(settings.grid if settings is not None else sample.fields["grid"])


def _has_boxes(sample: Sample) -> bool:
    return bool(sample.reference["boxes"]) and bool({"bbox", "polygon"} & set(sample.fields["asked"]))


def _reference_mask(sample: Sample) -> Mask | None:
    reference, size = sample.reference, sample.fields["size"]
    if reference["mask"] is not None:
        crop = reference["crop"]
        return _shown(reference["mask"], size, None if crop is None else tuple(crop), sample.fields["picture"])
    if reference["polygons"]:
        return draw_polygons(reference["polygons"], size)
    return None


@lru_cache(maxsize=64)
def _shown(file: str, size: Size, crop: tuple[int, int, int, int] | None, picture: Size) -> Mask:
    """The mask of what is shown, at the picture's own size. The last ones stay: a prompt's completions share one."""
    stored = read_mask(Path(file))
    mask = fit_mask(stored, picture)
    if mask is None:
        height, width = stored.shape
        raise DataError(
            "rewards.mask_aspect_ratio_differs",
            f"a mask must have the aspect ratio of its image, {picture[0]} x {picture[1]} pixels",
            place=file,
            value=f"{width} x {height}",
        )
    if crop is not None:
        mask = mask[crop[1] : crop[3], crop[0] : crop[2]]
    mask.setflags(write=False)
    return mask
