"""Rows of lesions: what `toolkit data prepare` writes, and the layouts of the skin scripts before it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from toolkit.data.cells import cell, decoded, extra_fields, name_of, picture_size, read_group, read_images, text_of
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import ImageError, MissingPicture, RowProblem
from toolkit.images import image_ref
from toolkit.images.ref import ImageRef
from toolkit.scoring.regions import Box, Place, Polygon, Size, clip_box, order_box, place_of, read_place
from toolkit.scoring.statistics import AGE_EDGES, band
from toolkit.tasks.lesion.prompt import choose_question
from toolkit.tasks.lesion.settings import LesionSettings

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "image_name", "img_name", "ImagePath"),
    "diagnosis": ("dx", "diagnosis"),
    "bbox": ("bbox",),
    "boxes": ("boxes",),
    "polygons": ("polygons",),
    "mask": ("mask",),
    "width": ("width",),
    "height": ("height",),
    "location": ("location", "spatial_description"),
    "size": ("size",),
    "features": ("features",),
    "concerning_features": ("concerning_features",),
    "patient": ("patient_id",),
    "lesion": ("lesion_id",),
    "age_band": ("age", "age_approx"),
    "sex": ("sex",),
    "site": ("localization", "site", "anatom_site_general"),
    "source": ("dataset",),
}
BY = ("sex", "site", "source")
"""Columns of the source that results can be given by under one name."""


def stand_in(settings: LesionSettings) -> dict[str, Any]:
    """The fields of a reference for a question of ``toolkit predict``, with every part that may be asked for."""
    return {
        "diagnosis": settings.labels.labels[0].code,
        "bbox": [0, 0, 1, 1],
        "polygons": [[[0, 0], [1, 0], [1, 1]]],
        "size": "unknown",
        "features": "unknown",
    }


def read(name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
    """The sample of one row.

    ``fields``: question, asked (the parts that the row knows, as the recipe orders them), frame, settings, size (of the
    picture or of its crop, in pixels), area of it in words, features, age_band, sex, site, source. ``reference``:
    diagnosis (a code), boxes, polygons (in pixels of what is shown), places (cells), mask (its file) and crop.

    Raises:
        RowProblem: no picture, a diagnosis that the table lacks, a box that is none, nothing that is asked for.
    """
    settings: LesionSettings = origin.settings
    place = f"{origin.file}: {name}"
    (image,) = read_images(name, row, replace(origin, max_images=1))
    size = picture = picture_size(row, origin, image, place)
    boxes, polygons = _boxes(row, origin, size, place), _polygons(row, origin, place)
    mask = _mask(row, origin, place)
    crop = choose_crop(boxes, size, settings, name) if boxes else None
    if crop is not None:
        image = replace(image, crop=crop)
        size = (crop[2] - crop[0], crop[3] - crop[1])
        boxes = [_shifted(box, crop) for box in boxes]
        polygons = [tuple((x - crop[0], y - crop[1]) for x, y in polygon) for polygon in polygons]
    places = [place_of(box, size, settings.grid) for box in boxes] or _named_places(row, origin, settings.grid)
    reference = {
        "diagnosis": _diagnosis(row, origin, settings, place),
        "boxes": [list(box) for box in boxes],
        "polygons": [[list(point) for point in polygon] for polygon in polygons],
        "places": [list(one) for one in places],
        "mask": None if mask is None else str(mask.path),
        "crop": None if crop is None else list(crop),
        "size": _area(row, origin, cropped=crop is not None),
        "features": _features(row, origin),
    }
    asked = tuple(part for part in settings.answer if reference[_KNOWN_BY[part]])
    if not asked:
        rule = "the row must have at least one part of data.lesion.answer"
        raise RowProblem("tasks.lesion.answer_parts_missing", rule, place=place)
    question = choose_question(asked, Random(f"{settings.seed}/{name}/question"))
    fields = {"question": question, "asked": asked, "size": size, "picture": picture, "settings": settings}
    fields["frame"] = settings.frame(size)
    fields |= {by: text for by in BY if (text := text_of(cell(row, origin, by)))}
    if text_of(age := cell(row, origin, "age_band")):
        fields["age_band"] = band(age, AGE_EDGES)
    fields |= {column: text for column, text in extra_fields(row, origin) if column not in fields}
    return Sample(name, "lesion", _group(row, origin, image), (image,), fields, reference)


_KNOWN_BY = {
    "diagnosis": "diagnosis",
    "location": "places",
    "size": "size",
    "features": "features",
    "bbox": "boxes",
    "polygon": "polygons",
}
"""Part of an answer -> what of the reference it is written from."""


def choose_crop(
    boxes: Sequence[Box], size: Size, settings: LesionSettings, name: str
) -> tuple[int, int, int, int] | None:
    """A part of the picture that holds every box, drawn by the seed and the row's name; None: the whole picture.

    Both sides have the same share of the picture's, drawn from ``settings.crop`` to 1, or as much as the boxes need.
    """
    if settings.crop >= 1:
        return None
    random = Random(f"{settings.seed}/{name}/crop")
    share = random.uniform(settings.crop, 1)
    edges = [_edges(boxes, side, size[side], share, random) for side in (0, 1)]
    (x1, x2), (y1, y2) = edges
    return x1, y1, x2, y2


def _edges(boxes: Sequence[Box], side: int, length: int, share: float, random: Random) -> tuple[int, int]:
    low, high = min(int(box[side]) for box in boxes), max(-int(-box[side + 2] // 1) for box in boxes)
    wanted = max(round(share * length), high - low, 1)
    start = random.randint(max(0, high - wanted), min(low, length - wanted))
    return start, start + wanted


def _shifted(box: Box, crop: Sequence[int]) -> Box:
    return box[0] - crop[0], box[1] - crop[1], box[2] - crop[0], box[3] - crop[1]


def _diagnosis(row: Mapping[str, Any], origin: RowOrigin, settings: LesionSettings, place: str) -> str | None:
    text = text_of(cell(row, origin, "diagnosis"))
    if not text:
        return None
    code = settings.labels.find(text)
    if code is None and "diagnosis" in settings.answer:
        rule = "the diagnosis must be in the table of labels"
        raise RowProblem("tasks.lesion.diagnosis_unknown", rule, place=place, value=text)
    return code


def _boxes(row: Mapping[str, Any], origin: RowOrigin, size: Size, place: str) -> list[Box]:
    """All boxes, else the one; inside the picture."""
    many, one = decoded(cell(row, origin, "boxes")), decoded(cell(row, origin, "bbox"))
    listed = many if _given(many) else [one] if _given(one) else []
    if not isinstance(listed, list):
        rule = "boxes must be a list of [x1, y1, x2, y2]"
        raise RowProblem("tasks.lesion.boxes_not_list", rule, place=place, value=listed)
    return [_box(box, size, place) for box in listed]


def _box(values: Any, size: Size, place: str) -> Box:
    numbers = _numbers(values)
    if numbers is None or len(numbers) != 4:
        raise RowProblem("tasks.lesion.box_malformed", "a box must be [x1, y1, x2, y2]", place=place, value=values)
    box = clip_box(order_box(*numbers), size)
    if box[0] >= box[2] or box[1] >= box[3]:
        rule = "a box must have an area inside the image"
        raise RowProblem("tasks.lesion.box_without_area", rule, place=place, value=values)
    return box


def _polygons(row: Mapping[str, Any], origin: RowOrigin, place: str) -> list[Polygon]:
    value = decoded(cell(row, origin, "polygons"))
    if not _given(value):
        return []
    polygons = [_polygon(points) for points in value] if isinstance(value, list) else [None]
    if None in polygons:
        rule = "polygons must be lists of [x, y]"
        raise RowProblem("tasks.lesion.polygons_malformed", rule, place=place, value=value)
    return [polygon for polygon in polygons if polygon]


def _polygon(points: Any) -> Polygon | None:
    pairs = [_numbers(point) for point in points] if isinstance(points, list) else [None]
    if any(pair is None or len(pair) != 2 for pair in pairs):
        return None
    return tuple((pair[0], pair[1]) for pair in pairs if pair)


def _numbers(values: Any) -> list[float] | None:
    if not isinstance(values, list | tuple) or any(
        isinstance(v, bool) or not isinstance(v, int | float) for v in values
    ):
        return None
    return list(values) if all(abs(value) < 1e9 for value in values) else None


def _given(value: Any) -> bool:
    return value is not None and value == value and value not in ("", [])


def _mask(row: Mapping[str, Any], origin: RowOrigin, place: str) -> ImageRef | None:
    text = text_of(cell(row, origin, "mask"))
    if not text:
        return None
    try:
        ref = image_ref(text, str(origin.image_root), "")
    except ImageError as error:
        rule = "a mask's path must not leave the folder data.image_root"
        raise RowProblem("tasks.lesion.mask_outside_root", rule, place=place, value=error.value) from None
    if not ref.path.is_file():
        raise MissingPicture("tasks.lesion.mask_missing", "the mask must exist", place=place, value=text)
    return ref


def _named_places(row: Mapping[str, Any], origin: RowOrigin, grid: int) -> list[Place]:
    """The place that a row without a box names in words."""
    named = read_place(text_of(cell(row, origin, "location")), grid)
    return [] if named is None else [named]


def _area(row: Mapping[str, Any], origin: RowOrigin, *, cropped: bool) -> str | None:
    """The row's size in words; a share of the picture is not one of its crop."""
    text = text_of(cell(row, origin, "size"))
    return None if not text or (cropped and "%" in text) else text


def _features(row: Mapping[str, Any], origin: RowOrigin) -> list[str]:
    """What features and concerning_features name, once each."""
    names: list[str] = []
    for field in ("features", "concerning_features"):
        value = decoded(cell(row, origin, field))
        listed = value if isinstance(value, list) else text_of(value).split(",")
        names += [text_of(one).replace("_", " ") for one in listed if text_of(one)]
    return list(dict.fromkeys(names))


def _group(row: Mapping[str, Any], origin: RowOrigin, image: ImageRef) -> str:
    """The recipe's column, else the patient, else the lesion, else the picture.

    Raises:
        RowProblem: the recipe names a column, and the row has nothing there.
    """
    if origin.group is None:
        for field in ("patient", "lesion"):
            if group := name_of(cell(row, origin, field)):
                return group
    return read_group(row, origin, (image,))
