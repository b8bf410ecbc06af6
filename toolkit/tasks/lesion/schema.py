"""Rows and settings of the task ``lesion``.

Rows are the output of ``toolkit data prepare``, or have the layouts of earlier skin-lesion scripts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import Field

from toolkit.data.boxes import BOX_COLUMNS, read_boxes
from toolkit.data.cells import cell, extra_fields, text_of
from toolkit.data.groups import read_group
from toolkit.data.image_sizes import coordinate_frame, image_size
from toolkit.data.literals import decoded
from toolkit.data.row_images import named_image, read_one_image
from toolkit.data.sample import OTHER_FILES, Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import ImageError, MissingImage, Problem, RowProblem
from toolkit.images import ImagePolicy
from toolkit.images.names import NOT_FOUND
from toolkit.images.ref import ImageRef
from toolkit.recipe import Recipe, Section
from toolkit.recipe.data_checks import empty_or_repeated
from toolkit.scoring.regions import (
    TOLERANCE,
    Box,
    Coordinates,
    CoordinatesKey,
    Frame,
    Location,
    Polygon,
    Size,
    choose_coordinates,
    locate_box,
    parse_location,
)
from toolkit.scoring.statistics import AGE_EDGES, bin_label
from toolkit.tasks.lesion.diagnoses import HAM10000, LabelTable, load_labels
from toolkit.tasks.lesion.prompt import choose_question

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "image_name", "img_name", "ImagePath"),
    "diagnosis": ("dx", "diagnosis"),
    **BOX_COLUMNS,
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

GROUP_BY = ("sex", "site", "source")
"""Group-by columns with a fixed name."""


class Lesion(Section):
    """Settings of the task ``lesion``: parts of the answer, labels and coordinates."""

    answer: tuple[Literal["diagnosis", "location", "size", "features", "bbox", "polygon"], ...] = (
        "diagnosis",
        "location",
        "bbox",
    )
    """Parts of an answer, in this order. A row without a value for a part leaves it out."""
    labels: Path | None = None
    """TOML file of diagnoses (``[[label]] code, name, synonyms``) that replaces the seven of HAM10000. The questions of
    this task are about skin. For other images, set ``data.task`` to ``"detect"``."""
    grid: Literal[3, 5] = 3
    """Rows and columns of the grid whose cells name a location in the image."""
    coordinates: CoordinatesKey = "auto"
    """Convention for coordinates in completions. ``auto`` is that of the model family. thousand_yx has y first.
    locations are the tokens of PaliGemma."""
    crop: float = Field(1.0, gt=0, le=1)
    """Smallest side of a random crop around the lesions, as a fraction of the image side. 1 disables cropping."""
    crop_splits: tuple[Literal["train", "validation", "test"], ...] = ("train",)
    """Splits whose images are cropped."""


def check_settings(recipe: Recipe) -> Iterator[Problem]:
    """Check that an answer has content."""
    listed = list(recipe.settings.answer)
    if not {"diagnosis", "location", "bbox", "polygon"} & set(listed):
        rule = "must have at least one of diagnosis, location, bbox and polygon"
        yield Problem("recipe.lesion_answer_incomplete", rule, "data.lesion.answer", listed, "Add one of them.")
    else:
        yield from empty_or_repeated("data.lesion.answer", listed)


def dry_run_settings(recipe: Recipe, synthetic: bool) -> dict[str, Any]:
    """Return the changes for a dry run: the model family's convention, and no labels that synthetic rows lack."""
    coordinates = _coordinates(recipe).name
    return {"coordinates": coordinates, **({"labels": None} if synthetic else {})}


def _coordinates(recipe: Recipe) -> Coordinates:
    model = recipe.model
    return choose_coordinates(recipe.settings.coordinates, model.name, "data.lesion.coordinates", model.family)


@dataclass(frozen=True, slots=True)
class LesionSettings:
    """Settings of ``Lesion``, ready to use.

    ``crop`` is the smallest fraction of each side that is shown. 1 means whole images.
    """

    answer: tuple[str, ...]
    grid: int
    labels: LabelTable
    coordinates: Coordinates
    policy: ImagePolicy
    seed: int
    crop: float

    def frame(self, size: Size) -> Frame:
        """Return the coordinate frame of an image or of its shown crop."""
        return coordinate_frame(size, self.policy, self.coordinates)


def lesion_settings(recipe: Recipe, split: str) -> LesionSettings:
    """Return the settings for the rows of one split.

    Raises:
        RecipeError: The coordinate convention of the model family is unknown.
        DataError: The recipe's label table is invalid.
    """
    lesion: Lesion = recipe.settings
    return LesionSettings(
        answer=lesion.answer,
        grid=lesion.grid,
        labels=HAM10000 if lesion.labels is None else load_labels(lesion.labels),
        coordinates=_coordinates(recipe),
        policy=ImagePolicy.from_recipe(recipe.images, recipe.model),
        seed=recipe.run.seed,
        crop=lesion.crop if split in lesion.crop_splits else 1.0,
    )


def placeholders(settings: LesionSettings) -> dict[str, Any]:
    """Return the fields of a placeholder reference for ``toolkit predict``, with every possible part of an answer."""
    return {
        "diagnosis": settings.labels.labels[0].code,
        "bbox": [0, 0, 1, 1],
        "polygons": [[[0, 0], [1, 0], [1, 1]]],
        "size": "unknown",
        "features": "unknown",
    }


def read(name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
    """Return the sample of one row.

    ``fields``: question, requested (the row's parts, in the recipe's order), frame, settings, size (of the image
    or its crop, in pixels), other_files (the mask), age_band, sex, site, source. ``reference``:
    diagnosis (a code), boxes and polygons (in pixels of the shown image), places (grid cells), mask (its file) and
    crop.

    Raises:
        RowProblem: No image, an unknown diagnosis, an invalid box, or none of the requested parts.
    """
    settings: LesionSettings = origin.settings
    place = str(origin.file)
    _check_not_detection(row, origin, place)
    image = read_one_image(name, row, origin)
    size = whole_size = image_size(row, origin, image, place)
    boxes, polygons = read_boxes(row, origin, size, place), _polygons(row, origin, place)
    _check_polygons(polygons, boxes, size, settings, place)
    mask = _mask(row, origin, place)
    crop = choose_crop(boxes, size, settings, name) if boxes else None
    if crop is not None:
        image = replace(image, crop=crop)
        size = (crop[2] - crop[0], crop[3] - crop[1])
        boxes = [_shifted(box, crop) for box in boxes]
        polygons = [tuple((x - crop[0], y - crop[1]) for x, y in polygon) for polygon in polygons]
    places = [locate_box(box, size, settings.grid) for box in boxes] or _named_places(row, origin, settings.grid)
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
    requested = tuple(part for part in settings.answer if reference[_REFERENCE_OF_PART[part]])
    if not requested:
        rule = "the row must have at least one part of data.lesion.answer"
        raise RowProblem("tasks.lesion.answer_parts_missing", rule, place=place)
    question = choose_question(requested, Random(f"{settings.seed}/{name}/question"))
    fields = {
        "question": question,
        "requested": requested,
        "size": size,
        "image_size": whole_size,
        "settings": settings,
        OTHER_FILES: () if mask is None else (mask,),
    }
    fields["frame"] = settings.frame(size)
    fields |= {by: text for by in GROUP_BY if (text := text_of(cell(row, origin, by)))}
    if text_of(age := cell(row, origin, "age_band")):
        fields["age_band"] = bin_label(age, AGE_EDGES)
    fields |= {column: text for column, text in extra_fields(row, origin) if column not in fields}
    return Sample(name, "lesion", read_group(row, origin, (image,)), (image,), fields, reference)


_REFERENCE_OF_PART = {
    "diagnosis": "diagnosis",
    "location": "places",
    "size": "size",
    "features": "features",
    "bbox": "boxes",
    "polygon": "polygons",
}
"""Part of an answer -> the part of the reference that its text is generated from."""


def choose_crop(
    boxes: Sequence[Box], size: Size, settings: LesionSettings, name: str
) -> tuple[int, int, int, int] | None:
    """Return a crop that contains every box, drawn by the seed and the row's name, or None for the whole image.

    Both sides have the same fraction of the image's sides, drawn from ``settings.crop`` to 1, or more if the boxes need
    it. Photographers centre lesions, so without crops a model could learn the location without looking.
    """
    if settings.crop >= 1:
        return None
    random = Random(f"{settings.seed}/{name}/crop")
    fraction = random.uniform(settings.crop, 1)
    edges = [_edges(boxes, side, size[side], fraction, random) for side in (0, 1)]
    (x1, x2), (y1, y2) = edges
    return x1, y1, x2, y2


def _edges(boxes: Sequence[Box], side: int, length: int, fraction: float, random: Random) -> tuple[int, int]:
    low, high = min(int(box[side]) for box in boxes), max(-int(-box[side + 2] // 1) for box in boxes)
    needed = max(round(fraction * length), high - low, 1)
    start = random.randint(max(0, high - needed), min(low, length - needed))
    return start, start + needed


def _check_not_detection(row: Mapping[str, Any], origin: RowOrigin, place: str) -> None:
    """Raise a RowProblem for a row with a class for each box, or with several diagnoses."""
    several = isinstance(decoded(cell(row, origin, "diagnosis")), list)
    named = row.get("source_format")
    if several or (named and "labels" in row):
        what = f"a row of the format {named}" if named else "a row with several diagnoses"
        rule = f"the image must have one diagnosis, but {what} has a class for each box"
        remedy = 'Set data.task to "detect".'
        raise RowProblem("tasks.lesion.class_of_each_box", rule, place=place, remedy=remedy)


def _shifted(box: Box, crop: Sequence[int]) -> Box:
    return box[0] - crop[0], box[1] - crop[1], box[2] - crop[0], box[3] - crop[1]


def _diagnosis(row: Mapping[str, Any], origin: RowOrigin, settings: LesionSettings, place: str) -> str | None:
    text = text_of(cell(row, origin, "diagnosis"))
    if not text:
        return None
    code = settings.labels.find(text)
    if code is None and "diagnosis" in settings.answer:
        rule = "the diagnosis must be in the table of labels"
        remedy = "Set data.lesion.labels to a table with every diagnosis, or correct these rows or data.columns."
        raise RowProblem("tasks.lesion.diagnosis_unknown", rule, place=place, value=text, remedy=remedy)
    return code


def _polygons(row: Mapping[str, Any], origin: RowOrigin, place: str) -> list[Polygon]:
    value = decoded(cell(row, origin, "polygons"))
    if not _has_value(value):
        return []
    polygons = [_polygon(points) for points in value] if isinstance(value, list) else [None]
    if None in polygons:
        rule = "polygons must be lists of three or more [x, y]"
        raise RowProblem("tasks.lesion.polygons_malformed", rule, place=place, value=value)
    return [polygon for polygon in polygons if polygon]


def _check_polygons(
    polygons: Sequence[Polygon], boxes: Sequence[Box], size: Size, settings: LesionSettings, place: str
) -> None:
    """Raise a RowProblem for polygons that are not in pixels of the image, or do not belong to the boxes."""
    points = [point for polygon in polygons for point in polygon]
    numbers = [number for point in points for number in point]
    if numbers and max(numbers) <= 1 and any(number != int(number) for number in numbers):
        rule, remedy = "a polygon must be in pixels, not in fractions of the image", "Multiply it by width and height."
        raise RowProblem("tasks.lesion.polygon_is_fraction", rule, place=place, value=numbers[:6], remedy=remedy)
    for x, y in points:
        if not (-TOLERANCE <= x <= size[0] + TOLERANCE and -TOLERANCE <= y <= size[1] + TOLERANCE):
            rule, value = "a polygon must be inside its image", f"{[x, y]} of {size[0]} x {size[1]}"
            raise RowProblem("tasks.lesion.polygon_outside_image", rule, place=place, value=value)
    if "polygon" in settings.answer and polygons and boxes and len(polygons) != len(boxes):
        rule, value = "the row must have one polygon for each box", f"{len(polygons)} polygons, {len(boxes)} boxes"
        raise RowProblem("tasks.lesion.polygons_and_boxes_differ", rule, place=place, value=value)


def _polygon(points: Any) -> Polygon | None:
    pairs = [_numbers(point) for point in points] if isinstance(points, list) else [None]
    if any(pair is None or len(pair) != 2 for pair in pairs) or 0 < len(pairs) < 3:
        return None
    return tuple((pair[0], pair[1]) for pair in pairs if pair)


def _numbers(values: Any) -> list[float] | None:
    if not isinstance(values, list | tuple) or any(
        isinstance(v, bool) or not isinstance(v, int | float) for v in values
    ):
        return None
    return list(values) if all(abs(value) < 1e9 for value in values) else None


def _has_value(value: Any) -> bool:
    return value is not None and value == value and value not in ("", [])


def _mask(row: Mapping[str, Any], origin: RowOrigin, place: str) -> ImageRef | None:
    text = text_of(cell(row, origin, "mask"))
    if not text:
        return None
    try:
        ref = named_image(text, str(origin.image_root))
    except ImageError as error:
        rule = "a mask's path must not leave the folder data.image_root"
        raise RowProblem("tasks.lesion.mask_outside_root", rule, place=place, value=error.value) from None
    if NOT_FOUND in ref.found:
        raise MissingImage("tasks.lesion.mask_missing", "the mask must exist", place=place, value=text)
    return ref


def _named_places(row: Mapping[str, Any], origin: RowOrigin, grid: int) -> list[Location]:
    """Return the location that a row without a box names in words."""
    named = parse_location(text_of(cell(row, origin, "location")), grid)
    return [] if named is None else [named]


def _area(row: Mapping[str, Any], origin: RowOrigin, *, cropped: bool) -> str | None:
    """Return the lesion's size in words, or None for a crop, whose fraction of the image is unknown."""
    text = text_of(cell(row, origin, "size"))
    return None if not text or (cropped and "%" in text) else text


def _features(row: Mapping[str, Any], origin: RowOrigin) -> list[str]:
    """Return the values of features and concerning_features without repeats."""
    names: list[str] = []
    for field in ("features", "concerning_features"):
        value = decoded(cell(row, origin, field))
        listed = value if isinstance(value, list) else text_of(value).split(",")
        names += [text_of(one).replace("_", " ") for one in listed if text_of(one)]
    return list(dict.fromkeys(names))
