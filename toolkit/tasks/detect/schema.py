"""Rows and settings of the task ``detect``: boxes of any classes, one row for each image.

Source formats such as COCO, Pascal VOC, YOLO and tables with one box for each line give such rows.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field

from toolkit.data.boxes import BOX_COLUMNS, OBJECT_BOXES, OBJECT_LABELS, objects_of, read_boxes, small_boxes
from toolkit.data.cells import cell, extra_fields, fold, is_missing, natural_order, texts_of
from toolkit.data.groups import read_group
from toolkit.data.image_sizes import coordinate_frame, image_size
from toolkit.data.literals import decoded
from toolkit.data.row_images import read_one_image
from toolkit.data.sample import Sample
from toolkit.data.task import Found, RowOrigin
from toolkit.errors import DataError, Problem, RowProblem
from toolkit.identifiers import Description
from toolkit.images import ImagePolicy
from toolkit.recipe import Recipe, Section
from toolkit.recipe.data_checks import empty_or_repeated
from toolkit.scoring.regions import (
    Coordinates,
    CoordinatesKey,
    Frame,
    choose_coordinates,
    find_key,
    parse_boxes,
    write_boxes,
)
from toolkit.tasks.detect.prompt import QUESTION, references

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "image_name", "img_name", "image_path", "ImagePath", "file_name", "filename", "image_id"),
    **BOX_COLUMNS,
    "objects": ("objects",),
    "labels": ("labels", "label", "class_name", "classes", "class", "category", "diagnosis", "dx"),
    "width": ("width",),
    "height": ("height",),
}

WITHOUT = frozenset(map(fold, ("no finding", "no findings")))
"""Labels of images without a box."""

LABELS_DIFFER = ("tasks.detect.labels_and_boxes_differ", "the row must have one label for each box")
MAX_SHOWN = 5


class Detect(Section):
    """Settings of the task ``detect``: the question, the classes and the convention for coordinates."""

    question: str = QUESTION
    """Text of the question."""
    classes: tuple[str, ...] | None = None
    """The classes, in the order of the prompt. Default: those of the training rows, sorted with numbers by
    value."""
    names: dict[str, str] = Field(default_factory=dict)
    """Label in the rows -> class name in prompt and answer, such as ``{ 0 = "nodule", 1 = "effusion" }``."""
    coordinates: CoordinatesKey = "auto"
    """Convention for coordinates in completions. ``auto`` is that of the model family. thousand_yx has y first.
    locations are the tokens of PaliGemma."""


@dataclass(frozen=True, slots=True)
class DetectSettings:
    """Settings of ``Detect``, ready to use.

    Attributes:
        question: the text of the question.
        classes: the classes in order. None: not known yet.
        coordinates: the model's convention.
        key: the key of a box in a JSON list. Empty for tags and tokens.
        policy: how images are prepared for the model.
        given: whether the recipe lists the classes, which rows must keep to.
        names: label in the rows -> name of the class.
    """

    question: str
    classes: tuple[str, ...] | None
    coordinates: Coordinates
    key: str
    policy: ImagePolicy
    given: bool = False
    names: Mapping[str, str] = field(default_factory=dict)


def check_settings(recipe: Recipe) -> Iterator[Problem]:
    """Check that the classes differ, also without case and punctuation."""
    classes = recipe.settings.classes
    if classes is not None:
        yield from empty_or_repeated("data.detect.classes", classes)
        if len({fold(name) for name in classes}) < len(set(classes)):
            rule = "classes must differ in more than case, blanks and punctuation"
            yield Problem("recipe.detect_classes_alike", rule, "data.detect.classes", list(classes), "Rename one.")


def dry_run_settings(recipe: Recipe, synthetic: bool) -> dict[str, Any]:
    """Return the changes for a dry run: the model family's convention, and no classes that synthetic rows lack."""
    return {"coordinates": _coordinates(recipe).name, **({"classes": None} if synthetic else {})}


def detect_settings(recipe: Recipe, split: str) -> DetectSettings:
    """Return the settings for the rows of one split.

    Raises:
        RecipeError: The coordinate convention of the model family is unknown.
    """
    detect: Detect = recipe.settings
    coordinates = _coordinates(recipe)
    return DetectSettings(
        question=detect.question,
        classes=detect.classes,
        coordinates=coordinates,
        key=find_key(coordinates, recipe.model.name, recipe.model.family),
        policy=ImagePolicy.from_recipe(recipe.images, recipe.model),
        given=detect.classes is not None,
        names=detect.names,
    )


def placeholders(settings: DetectSettings) -> dict[str, Any]:
    """Return the fields of a placeholder reference for ``toolkit predict``."""
    return {"boxes": [], "labels": []}


def read(name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
    """Return the sample of one row.

    ``fields``: question, classes (empty while they are not known), size (of the image in pixels), frame, settings.
    ``reference``: labels and boxes (in pixels of the image), as many of each. Both are empty for an image without
    findings.

    Raises:
        RowProblem: No image, no boxes, an invalid box, another number of labels, or a label that is no class.
    """
    settings: DetectSettings = origin.settings
    place = str(origin.file)
    image = read_one_image(name, row, origin)
    size = image_size(row, origin, image, place)
    labels = tuple(settings.names.get(label, label) for label in _labels(row, origin, place))
    boxes = read_boxes(row, origin, size, place)
    if any(fold(label) in WITHOUT for label in labels):
        if boxes or len(labels) > 1:
            rule, remedy = "an image without findings must have no box and no other label", "Correct the row."
            value = f"{list(labels)}, {len(boxes)} boxes"
            raise RowProblem("tasks.detect.box_without_finding", rule, place=place, value=value, remedy=remedy)
        labels = ()
    if not boxes and not labels:
        _check_empty(row, origin, place)
    if len(labels) != len(boxes):
        value = f"{len(labels)} labels, {len(boxes)} boxes"
        remedy = "Correct the row, or name the columns in data.columns.labels and data.columns.boxes."
        raise RowProblem(*LABELS_DIFFER, place=place, value=value, remedy=remedy)
    if settings.given:
        labels = _as_classes(labels, settings, place)
    fields = {
        "question": settings.question,
        "classes": settings.classes or (),
        "size": size,
        "frame": coordinate_frame(size, settings.policy, settings.coordinates),
        "settings": settings,
    }
    fields |= {column: text for column, text in extra_fields(row, origin) if column not in fields}
    reference = {"labels": list(labels), "boxes": [list(box) for box in boxes]}
    return Sample(name, "detect", read_group(row, origin, (image,)), (image,), fields, reference)


def notes(sample: Sample) -> Iterator[tuple[str, str]]:
    """Yield a warning about boxes without an area in the model's convention, and about repeated ones."""
    yield from small_boxes(sample)
    found = references(sample)
    if len(set(found)) < len(found):
        rule = "a box should be in a row once: an answer must name the same box of a class twice"
        yield "tasks.detect.box_repeated", rule


def find_settings(settings: DetectSettings, splits: Mapping[str, Sequence[Sample]]) -> Found:
    """Return the classes, from the training rows if the recipe lists none.

    Raises:
        DataError: The training rows have no box, classes are alike or not parsed, or an image has several rows.
    """
    counts = {split: _count(split, samples) for split, samples in splits.items()}
    classes = settings.classes or tuple(sorted(counts["train"], key=natural_order))
    if not classes:
        rule, remedy = "the training rows must have a box", "List the classes in data.detect.classes."
        raise DataError("tasks.detect.no_boxes", rule, place="[data] train", remedy=remedy)
    alike = [name for name in classes if sum(fold(name) == fold(other) for other in classes) > 1]
    if alike:
        rule = "labels must differ in more than case, blanks and punctuation"
        raise DataError(
            "tasks.detect.labels_alike", rule, place="[data] train", value=alike, remedy="Write each class in one way."
        )
    if lost := [name for name in classes if not _is_parsed(name, settings)]:
        rule = "a class must be parsed from an answer as it is written into one, without ; < > or line breaks"
        remedy = "Rename it in the rows."
        raise DataError("tasks.detect.class_not_parsed", rule, place="[data] train", value=lost, remedy=remedy)
    return Found({"classes": list(classes)}, tuple(_notes(classes, counts)))


def with_found(settings: DetectSettings, values: Mapping[str, Any]) -> DetectSettings:
    """Return the settings with the result of ``find_settings``."""
    return replace(settings, classes=tuple(values["classes"]))


def _is_parsed(name: str, settings: DetectSettings) -> bool:
    frame = Frame((1000, 1000), (1000, 1000), settings.coordinates)
    text = write_boxes([(name, (100, 200, 300, 400))], frame, settings.key)
    return [fold(label) for label, _ in parse_boxes(text, frame).boxes] == [fold(name)]


def _coordinates(recipe: Recipe) -> Coordinates:
    model = recipe.model
    return choose_coordinates(recipe.settings.coordinates, model.name, "data.detect.coordinates", model.family)


def _labels(row: Mapping[str, Any], origin: RowOrigin, place: str) -> tuple[str, ...]:
    value = decoded(cell(row, origin, "labels"))
    if is_missing(value):
        value = objects_of(row, origin, OBJECT_LABELS)
    if isinstance(value, list) and any(is_missing(one) for one in value):
        raise RowProblem("tasks.detect.label_missing", "every box must have a label", place=place, value=value)
    return texts_of(value)


def _check_empty(row: Mapping[str, Any], origin: RowOrigin, place: str) -> None:
    """Raise a RowProblem unless the row says that its image has no findings, by an empty list or a label."""
    said = [decoded(cell(row, origin, field)) for field in ("boxes", "bbox", "labels")]
    said.append(objects_of(row, origin, OBJECT_BOXES))
    if [] in said or any(isinstance(one, str) and fold(one) in WITHOUT for one in said):
        return
    rule = "the row must have boxes, or an empty list for an image without findings"
    remedy = 'Write [] into the column of the boxes, or "No finding" into that of the labels.'
    raise RowProblem("tasks.detect.boxes_missing", rule, place=place, value=said[0], remedy=remedy)


def _as_classes(labels: Sequence[str], settings: DetectSettings, place: str) -> tuple[str, ...]:
    classes = {fold(name): name for name in settings.classes or ()}
    if others := [label for label in labels if fold(label) not in classes]:
        rule, remedy = "every label must be one of data.detect.classes", "Correct the row, or add the class."
        raise RowProblem("tasks.detect.label_not_listed", rule, place=place, value=others, remedy=remedy)
    return tuple(classes[fold(label)] for label in labels)


def _count(split: str, samples: Sequence[Sample]) -> Counter[str]:
    """Return the number of boxes of each class.

    Raises:
        DataError: An image has several rows.
    """
    found: Counter[str] = Counter()
    rows: dict[str, str] = {}
    for sample in samples:
        found.update(sample.reference["labels"])
        path = str(sample.images[0].path)
        if path in rows:
            raise DataError(
                "tasks.detect.image_repeated",
                "an image must have one row with all of its boxes, because a row with some of them teaches the model "
                "to leave the others out",
                place=split,
                value=Description(f"{rows[path]} and {sample.shown}"),
                remedy="Write lists of boxes and labels, or a table with the columns image, label and four corners.",
            )
        rows[path] = sample.shown
    return found


def _notes(classes: Sequence[str], counts: Mapping[str, Counter[str]]) -> Iterator[Problem]:
    train = counts["train"]
    each = ", ".join(f"{name} {train[name]:,}" for name in classes)
    yield Problem("tasks.detect.classes_read", f"boxes of each class: {each}", "train")
    if all(name.isdecimal() for name in classes):
        rule = "classes should have names, because a number does not say what a box shows"
        remedy = 'Set data.detect.names = { 0 = "...", 1 = "..." } with the names of the dataset.'
        yield Problem("tasks.detect.classes_are_numbers", rule, "train", list(classes[:MAX_SHOWN]), remedy)
    if lacking := [name for name in classes if not train[name]]:
        rule, remedy = "every class should have training boxes", "Add rows, or remove the class."
        yield Problem("tasks.detect.class_without_boxes", rule, "train", lacking, remedy)
    for split, found in counts.items():
        if others := [f"{name} ({found[name]:,} boxes)" for name in sorted(found) if name not in classes]:
            rule = "classes of this split should be classes of the training rows. A model cannot name them"
            yield Problem(
                "tasks.detect.class_not_in_train", rule, split, ", ".join(others[:MAX_SHOWN]), "Add training rows."
            )
