"""Rows and settings of the task ``classify``: any label set, with one or several labels per row."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field

from toolkit.data.cells import NO_IMAGE, cell, extra_fields, natural_order, number_of
from toolkit.data.groups import patient_folder, read_group
from toolkit.data.row_images import read_images
from toolkit.data.sample import Sample
from toolkit.data.task import GROUP_FIELDS, Found, RowOrigin
from toolkit.errors import DataError, Problem, RowProblem
from toolkit.images.ref import ImageRef
from toolkit.recipe import Recipe, Section
from toolkit.recipe.data_checks import empty_or_repeated
from toolkit.synthetic.tissue import TISSUES
from toolkit.tasks.classify.parse import reads_back
from toolkit.tasks.classify.row_labels import (
    LABEL_MISSING,
    Reading,
    RowLabels,
    composed,
    confusable,
    fold,
    joined_labels,
    one_hot_columns,
    read_label_cell,
    read_one_hot,
    without_none,
)

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "image_name", "img_name", "image_path", "ImagePath", "Image Index", "id_code", "image_id",
              "Path", "file_name", "filename", "file"),
    "label": ("label", "labels", "dx", "diagnosis", "class", "Finding Labels", "target", "category"),
}  # fmt: skip

ONE = "Which class does this image show?"
SEVERAL = "Which of these classes does this image show?"
"""Default questions, for one and for several labels per image."""

NOT_LISTED = ("tasks.classify.label_not_listed", "the label must be one of data.classify.labels")
ADD_LABEL = "Correct the row, or add the label to data.classify.labels."
"""Problem and remedy of a label that the recipe does not list."""

MAX_SHOWN = 5


class Classify(Section):
    """Settings of the task ``classify``: the question, the classes, and how rows name them."""

    question: str | None = None
    """Text of the question. Default: which class, or which of these classes, the image shows."""
    labels: tuple[str, ...] | None = None
    """The classes, in the order of the prompt. Default: the labels of the training rows, sorted with numbers by
    value."""
    names: dict[str, str] = Field(default_factory=dict)
    """Label in the rows -> class name in prompt and answer, such as ``{ 0 = "no DR", 1 = "mild" }``."""
    multi: bool | None = None
    """Whether an image can have several labels. Default: as in the training rows if they are clear, otherwise an
    error."""
    one_hot: tuple[str, ...] = ()
    """Columns of 0 and 1, one for each class, instead of a label column."""
    separator: str = "|"
    """Text between several labels in one cell."""
    none: str = "No Finding"
    """Label of images without any class, if images can have several labels. It is not a class itself."""
    uncertain: Literal["ignore", "positive", "negative"] | None = None
    """How to read -1 (uncertain) in a one-hot column. Required if the rows have it."""
    blank: Literal["ignore", "negative"] | None = None
    """How to read a blank in a one-hot column. Required if the rows have it. A blank label cell, or an empty list, has
    no class if this is ``"negative"``."""


@dataclass(frozen=True, slots=True)
class ClassifySettings:
    """Settings of ``Classify``, ready to use.

    Attributes:
        question: the text of the question, or None for the default.
        reading: how labels are read.
        labels: the classes in order. None: not known yet.
        multi: whether an image can have several labels. None: not known yet.
        given: the labels that the recipe lists, which rows must keep to. None: those of the training rows are used.
    """

    question: str | None
    reading: Reading
    labels: tuple[str, ...] | None
    multi: bool | None
    given: tuple[str, ...] | None


def check_settings(recipe: Recipe) -> Iterator[Problem]:
    """Check that lists have distinct entries, and that class names can be distinguished."""
    section: Classify = recipe.settings
    if section.labels is not None:
        yield from empty_or_repeated("data.classify.labels", section.labels)
        if len(section.labels) == 1 and section.multi is not True:
            rule, remedy = "must have at least two classes", "Add the other classes, or set data.classify.multi."
            yield Problem("recipe.classify_one_class", rule, "data.classify.labels", list(section.labels), remedy)
        yield from _unusable_names(section.labels, section.multi is True, "data.classify.labels")
    if section.one_hot:
        yield from empty_or_repeated("data.classify.one_hot", section.one_hot)
    if not section.separator:
        yield Problem("recipe.classify_separator_empty", "must not be empty", "data.classify.separator", "", "Set it.")


def dry_run_settings(recipe: Recipe, synthetic: bool) -> dict[str, Any]:
    """Return the changes for a dry run on synthetic rows, whose labels are not those of the recipe."""
    if not synthetic:
        return {}
    named = set(recipe.settings.names) == set(TISSUES)
    return {"one_hot": (), **({} if named else {"names": {}, "labels": None})}


def classify_settings(recipe: Recipe, split: str) -> ClassifySettings:
    """Return the settings for the rows of a split. Labels that the recipe does not list are not known yet."""
    section: Classify = recipe.settings
    reading = Reading(
        names={composed(number_of(label)): composed(name) for label, name in section.names.items()},
        one_hot=section.one_hot,
        separator=section.separator,
        none=section.none,
        uncertain=section.uncertain,
        blank=section.blank,
    )
    labels = None if section.labels is None else tuple(map(composed, section.labels))
    return ClassifySettings(section.question, reading, labels, section.multi, labels)


def placeholders(settings: ClassifySettings) -> dict[str, Any]:
    """Return a label for the placeholder reference of ``toolkit predict``."""
    if settings.reading.is_one_hot:
        return {**dict.fromkeys(settings.reading.one_hot, 0), settings.reading.one_hot[0]: 1}
    label = settings.labels[0] if settings.labels else settings.reading.none
    return {"label": next((value for value, name in settings.reading.names.items() if name == label), label)}


def read(name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
    """Return the sample of one row.

    ``fields``: question, labels (the classes; empty while they are not known), multi, and the columns that the recipe
    names. ``reference``: labels (the classes that the image has) and unknown (those of which the row does not say it).

    Raises:
        RowProblem: the row has no image, no label, a label that is not a class, or several labels where one is
            expected.
    """
    settings: ClassifySettings = origin.settings
    images = read_images(name, row, origin)
    labels = _labels(row, origin, settings, str(origin.file))
    fields: dict[str, Any] = {
        "question": settings.question or (SEVERAL if settings.multi else ONE),
        "labels": settings.labels or (),
        "multi": bool(settings.multi),
        "lenient": "ignore" in (settings.reading.uncertain, settings.reading.blank),
    }
    fields |= {column: text for column, text in extra_fields(row, origin) if column not in fields}
    if not images and not any(fields.get(column) for column in origin.context):
        remedy = "Add the image, or a text in a column of prompt.context."
        raise RowProblem(*NO_IMAGE, place=str(origin.file), value=cell(row, origin, "image"), remedy=remedy)
    reference = {"labels": list(labels.present), "unknown": list(labels.unknown)}
    return Sample(name, "classify", _group(row, origin, images), images, fields, reference)


def find_settings(settings: ClassifySettings, splits: Mapping[str, Sequence[Sample]]) -> Found:
    """Return the classes and whether images can have several of them, from the training rows.

    Raises:
        DataError: the rows can be read in two ways, or class names cannot be distinguished.
    """
    counts = {split: _count(samples) for split, samples in splits.items()}
    train = counts["train"]
    multi = _find_multi(settings, train)
    labels = settings.given or _find_labels(settings, train, multi)
    _check_classes(labels, train, multi, settings)
    none = settings.reading.none if multi else None
    notes = [*_describe(labels, train, multi, settings), *_differences(labels, counts, none)]
    return Found({"labels": list(labels), "multi": multi}, tuple(notes))


def with_found(settings: ClassifySettings, values: Mapping[str, Any]) -> ClassifySettings:
    """Return the settings with the result of ``find_settings``."""
    return replace(settings, labels=tuple(values["labels"]), multi=bool(values["multi"]))


@dataclass(frozen=True, slots=True)
class _Counts:
    """Counts of the labels of one split: rows of each label, rows by their number of labels, and unknown labels."""

    rows: int
    labels: Counter[str]
    sizes: Counter[int]
    unknown: Counter[str]


def _count(samples: Sequence[Sample]) -> _Counts:
    labels, sizes, unknown = Counter[str](), Counter[int](), Counter[str]()
    for sample in samples:
        labels.update(sample.reference["labels"])
        sizes[len(sample.reference["labels"])] += 1
        unknown.update(sample.reference["unknown"])
    return _Counts(len(samples), labels, sizes, unknown)


def _find_multi(settings: ClassifySettings, train: _Counts) -> bool:
    if settings.multi is not None:
        return settings.multi
    if any(size > 1 for size in train.sizes):
        return True
    if train.unknown or train.sizes[0]:
        rows = train.sizes[0]
        raise DataError(
            "tasks.classify.multi_unclear",
            f"data.classify.multi must say whether an image can have several labels, because no training row has more "
            f"than one label and {rows:,} have none",
            place="[data.classify] multi",
            value="not set",
            remedy="Set it to true, or to false if rows without a label are errors.",
        )
    return False


def _find_labels(settings: ClassifySettings, train: _Counts, multi: bool) -> tuple[str, ...]:
    """Return the classes in the order of the recipe's names or columns, otherwise in natural order."""
    reading = settings.reading
    listed = [reading.names.get(column, column) for column in reading.one_hot] or list(reading.names.values())
    found = dict.fromkeys([*listed, *sorted(set(train.labels) - set(listed), key=natural_order)])
    return tuple(name for name in found if not (multi and fold(name) == fold(reading.none)))


def _check_classes(labels: Sequence[str], train: _Counts, multi: bool, settings: ClassifySettings) -> None:
    none = settings.reading.none
    if len(labels) < (1 if multi else 2):
        rule = "the training rows must have at least two classes"
        remedy = "Check the label column, or list the classes in data.classify.labels."
        raise DataError("tasks.classify.one_class", rule, place="[data] train", value=list(labels), remedy=remedy)
    strays = [name for name in train.labels if name not in labels and not (multi and fold(name) == fold(none))]
    if strays:
        raise DataError(*NOT_LISTED, place="[data] train", value=strays[:MAX_SHOWN], remedy=ADD_LABEL)
    if settings.given is None and (found := joined_labels(labels)):
        name, separator = found
        rule = f"{name!r} can be read as one class or as several classes joined by {separator!r}"
        remedy = f'Set data.classify.separator = "{separator}", or list the classes in data.classify.labels.'
        raise DataError("tasks.classify.label_ambiguous", rule, place="[data] train", value=name, remedy=remedy)
    if problems := list(_unusable_names(labels, multi, "[data] train")):
        one = problems[0]
        raise DataError(one.code, one.rule, place=one.place, value=one.value, remedy=one.remedy)


def _unusable_names(labels: Sequence[str], multi: bool, place: str) -> Iterator[Problem]:
    """Yield classes that an answer cannot name, because two names are equal or a name is not parsed back."""
    remedy = "Give them other names in data.classify.names."
    if pair := confusable(labels):
        rule = "class names must differ in more than case and punctuation"
        joined = "Give them other names in data.classify.names, or the same name if they are one class."
        yield Problem("tasks.classify.names_confusable", rule, place, list(pair), joined)
    elif unread := [name for name in labels if not reads_back(name, multi)]:
        rule = "the parser must find a class name in the answer that SFT learns"
        yield Problem("tasks.classify.name_unreadable", rule, place, unread[:MAX_SHOWN], remedy)


def _describe(labels: Sequence[str], train: _Counts, multi: bool, settings: ClassifySettings) -> Iterator[Problem]:
    """Yield how the labels were read, with the counts of values that the recipe decides about."""
    each = ", ".join(f"{name} {train.labels[name]:,}" for name in labels)
    kind = "each image has any number of these labels" if multi else "each image has one of these labels"
    yield Problem("tasks.classify.labels_read", f"{kind}: {each}", "train")
    if unknown := ", ".join(f"{name} {train.unknown[name]:,}" for name in labels if train.unknown[name]):
        yield Problem("tasks.classify.labels_unknown", f"labels that rows leave open are ignored: {unknown}", "train")
    reading = settings.reading
    shared = [name for name, count in Counter(reading.names.values()).items() if count > 1]
    if shared:
        rule = "labels with the same name in data.classify.names are one class"
        merged = [(one, [label for label, name in reading.names.items() if name == one]) for one in shared]
        yield Problem(
            "tasks.classify.labels_merged",
            rule,
            "[data.classify] names",
            "; ".join(f"{one}: {', '.join(of)}" for one, of in merged),
        )
    unnamed = [name for name in labels if name not in reading.names.values()]
    if reading.names and not reading.is_one_hot and unnamed and settings.given is None:
        rule = "data.classify.names should have every label, or their classes keep the label of the rows as name"
        yield Problem("tasks.classify.label_without_name", rule, "train", unnamed[:MAX_SHOWN], "Add their names.")
    for key, value in (("uncertain", reading.uncertain), ("blank", reading.blank)):
        if value in ("positive", "negative"):
            rule = f"data.classify.{key} reads these labels as {value}"
            yield Problem(f"tasks.classify.{key}_labels_read", rule, "[data.classify]", value)


def _differences(labels: Sequence[str], counts: Mapping[str, _Counts], none: str | None) -> Iterator[Problem]:
    """Yield classes without a training row, and labels of another split that are no class.

    Args:
        labels: the classes.
        counts: split -> counts of its labels.
        none: the label without a class. None: every image has one label.

    Raises:
        DataError: rows of another split have several labels, and training rows one.
    """
    if lacking := [name for name in labels if not counts["train"].labels[name]]:
        rule = "every class should have training rows"
        yield Problem("tasks.classify.class_without_rows", rule, "train", lacking, "Add rows, or remove the class.")
    for split, found in counts.items():
        if split != "train" and found.rows and (unseen := [name for name in labels if not found.labels[name]]):
            rule = "every class should have rows in this split, because a class without rows has no figures"
            yield Problem("tasks.classify.class_not_in_split", rule, split, unseen, "Add rows of these classes.")
        if none is None and any(size != 1 for size in found.sizes):
            raise DataError(
                "tasks.classify.split_has_several_labels",
                "rows of every split must have one label, as the training rows do",
                place=split,
                value=f"{found.rows - found.sizes[1]:,} rows have another number of labels",
                remedy="Set data.classify.multi = true, or correct the rows.",
            )
        ignored = {*labels, *(name for name in found.labels if none is not None and fold(name) == fold(none))}
        others = {name: count for name, count in found.labels.items() if name not in ignored}
        if others and split != "train":
            rule = "labels of this split should be classes of the training rows, because a model cannot name others"
            shown = ", ".join(f"{name} ({count:,} rows)" for name, count in list(others.items())[:MAX_SHOWN])
            yield Problem(
                "tasks.classify.label_not_in_train", rule, split, shown, "Add training rows of these classes."
            )


def _labels(row: Mapping[str, Any], origin: RowOrigin, settings: ClassifySettings, place: str) -> RowLabels:
    try:
        found = _read_labels(row, origin, settings)
    except RowProblem as problem:
        raise RowProblem(
            problem.code, problem.rule, place=place, value=problem.problem.value, remedy=problem.problem.remedy
        ) from None
    if settings.given is None:
        return found
    others = [name for name in found.present if name not in settings.given]
    # Before it is known whether images can have several labels, a row without a class is kept.
    undecided = settings.multi is None and [fold(name) for name in others] == [fold(settings.reading.none)]
    if others and not undecided:
        raise RowProblem(*NOT_LISTED, place=place, value=others, remedy=ADD_LABEL)
    return found


def _read_labels(row: Mapping[str, Any], origin: RowOrigin, settings: ClassifySettings) -> RowLabels:
    reading = settings.reading
    if reading.is_one_hot:
        found = read_one_hot(row, reading)
    elif "label" in origin.column:
        found = read_label_cell(cell(row, origin, "label"), reading)
    else:
        columns = one_hot_columns(row)
        remedy = "Name its column in data.columns.label."
        if len(columns) > 1:
            remedy = f"Set data.classify.one_hot = {columns} (only the classes), or set data.columns.label."
        raise RowProblem(*LABEL_MISSING, value="no label column", remedy=remedy)
    several = settings.multi if settings.multi is not None else len(found.present) > 1
    if several:
        return without_none(found, reading.none)
    if settings.multi is False and len(found.present) != 1:
        rule = "the row must have one label, because data.classify.multi is false"
        raise RowProblem("tasks.classify.labels_not_one", rule, value=list(found.present), remedy="Correct the row.")
    return found


def _group(row: Mapping[str, Any], origin: RowOrigin, images: tuple[ImageRef, ...]) -> str:
    """Return the group of the row's columns, otherwise the folder of the patient in its path, otherwise the image.

    Raises:
        RowProblem: a column of the group is empty.
    """
    in_columns = origin.group is not None or any(field in origin.column for field in GROUP_FIELDS)
    path = "" if in_columns or not images else str(images[0].path).removeprefix(str(origin.image_root))
    return patient_folder(path) or read_group(row, origin, images)
