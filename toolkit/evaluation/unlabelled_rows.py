"""Rows without a reference: those of a file in any format, or the images of a folder.

References in the rows are ignored, so that the prompt of a row does not depend on them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolkit.data import RowCount, Tally
from toolkit.data.groups import NO_GROUPS, private_parts
from toolkit.data.rows import check_dropped, read_file
from toolkit.data.sample import Sample
from toolkit.data.sources import is_image_folder, source_exists
from toolkit.data.task import RowOrigin, Task
from toolkit.errors import DataError, Problem, RowProblem
from toolkit.evaluation.predict import PREDICT, check_context
from toolkit.images.dicom import HEAD_BYTES, is_dicom
from toolkit.images.names import is_image_name
from toolkit.recipe import Recipe
from toolkit.tasks import TASKS

DICOMDIR = "DICOMDIR"
"""File of a DICOM medium that lists the others. It has no image."""

QUESTION, OPTIONS, IMAGE = "question", "options", "image"


@dataclass(frozen=True, slots=True)
class Constants:
    """Values that are the same for every row.

    Attributes:
        question: the question. None: that of the row or of the task.
        options: options of a multiple-choice question.
        context: column of prompt.context -> text, for a folder of images.
    """

    question: str | None = None
    options: tuple[str, ...] = ()
    context: Mapping[str, str] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Any]:
        """Return field of the task -> value."""
        given = {QUESTION: self.question, OPTIONS: list(self.options)}
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True, slots=True)
class UnlabelledRows:
    """The samples of a prediction.

    Attributes:
        samples: in the order of the source. Their reference is empty.
        dropped: unusable rows.
        notes: warnings about rows and columns.
        fingerprint: the fingerprint of the rows. Images are not part of it.
    """

    samples: Sequence[Sample]
    dropped: tuple[RowCount, ...]
    notes: tuple[Problem, ...]
    fingerprint: str


def read_unlabelled_rows(
    recipe: Recipe,
    settings: Any,
    source: Path,
    image_root: Path | None,
    constants: Constants,
    whole: tuple[str, ...] = (),
) -> UnlabelledRows:
    """Read the rows of a file or folder, or the images of a folder.

    Args:
        recipe: defines the task, column names and prompt. Its filter and groups are ignored.
        settings: the settings of the task.
        source: a source of rows in any format, a folder of images, or one image.
        image_root: the folder of relative image paths. None: that of the source.
        constants: values of every row.
        whole: columns whose whole numbers have no decimal point in the training rows.

    Raises:
        DataError: the source is missing, rows or columns do not fit the task, or a value is given twice.
    """
    task = TASKS[recipe.dataset.task]
    if task.agent_memory is not None:
        rule, remedy = "rows with agent memory are predicted one episode at a time", "Use --steps instead of --data."
        raise DataError("predict.rows_have_agent_memory", rule, place="--data", value=task.name, remedy=remedy)
    if not source_exists(str(source)):
        rule = "the source of the rows must exist"
        raise DataError("predict.source_missing", rule, place="--data", value=str(source), remedy="Correct the path.")
    is_folder_of_images = is_image_folder(source) if source.is_dir() else _is_image(source)
    _check_constants(task, constants, {QUESTION} if task.turns and is_folder_of_images else set())
    check_context(recipe, constants.context, "--context")
    fields = {**task.placeholders(settings), **constants.fields}
    reader = _Reader(task, fields, dict(constants.context), settings, whole)
    if is_folder_of_images:
        if image_root is not None:
            rule, remedy = "images of a folder have no other folder", "Leave out --image-root."
            raise DataError("predict.image_root_unused", rule, place="--image-root", value=str(source), remedy=remedy)
        return _read_images(recipe, reader, source.absolute())
    return _read_rows(recipe, reader, source, image_root, constants)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads rows without their reference.

    Attributes:
        task: the task.
        fixed: field -> value that replaces the row's: placeholders of the reference, and constants.
        context: column of prompt.context -> text.
        settings: the settings of the task.
        whole: columns whose whole numbers have no decimal point.
    """

    task: Task
    fixed: Mapping[str, Any]
    context: Mapping[str, str]
    settings: Any
    whole: tuple[str, ...]

    @property
    def reference(self) -> set[str]:
        """Return the fields with nothing but the answer, and those that are fixed."""
        leaking = {name for name, columns in self.task.columns.items() if self.task.leaking & set(columns)}
        return leaking - {name for one in self.missing for name in one.split("|")} | set(self.fixed)

    @property
    def missing(self) -> frozenset[str]:
        """Return the required fields that are not fixed. ``a|b`` requires one of them."""
        has_question = self.task.turns is not None and QUESTION in self.fixed  # a conversation of one question
        required = () if has_question else self.task.required
        return frozenset(one for one in required if not set(one.split("|")) & set(self.fixed))

    def without_reference(self) -> Task:
        """Return the task, whose rows need no reference."""
        columns = {name: one for name, one in self.task.columns.items() if name not in self.reference}
        return replace(self.task, columns=columns, required=self.missing, read=self.read, notes=None)

    def read(self, name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
        """Return the sample of a row, with placeholders as its reference. Raises RowProblem as ``Task.read``."""
        columns = {field: f"\0{field}" for field in self.fixed}
        kept = {field: column for field, column in origin.column.items() if field not in self.reference}
        values = {columns[field]: value for field, value in self.fixed.items()}
        own = replace(origin, column={**kept, **columns}, settings=self.settings)
        sample = self.task.read(name, {**row, **values}, own)
        return replace(sample, fields={**sample.fields, **self.context})


def _read_rows(
    recipe: Recipe, reader: _Reader, source: Path, image_root: Path | None, constants: Constants
) -> UnlabelledRows:
    if constants.context:
        rule, remedy = "the rows of a file must have their own context", "Leave out --context."
        raise DataError("predict.context_given_twice", rule, place="--context", remedy=remedy)
    dataset = recipe.dataset
    columns = {name: column for name, column in dataset.columns.items() if name not in reader.reference}
    # The recipe's own image root might have other images of the same names.
    update: dict[str, Any] = {"columns": columns, "group": NO_GROUPS, "filter": {}, "image_root": None}
    evaluate = recipe.evaluate and recipe.evaluate.model_copy(update={"by": ()})
    task = reader.without_reference()
    changed = recipe.model_copy(update={"data": dataset.model_copy(update=update), "evaluate": evaluate})
    found = read_file(changed, task, str(source), image_root, PREDICT, reader.whole)
    check_dropped(found, dataset.max_dropped)
    table = found.samples.table
    for name in constants.fields:
        mapped = [dataset.columns[name]] if name in dataset.columns else reader.task.columns[name]
        if both := [column for column in mapped if column in table.columns]:
            rule, remedy = f"the rows have a {name} already", f"Leave out --{name.rstrip('s')}, or remove the column."
            raise DataError("predict.value_given_twice", rule, place=source, value=both[0], remedy=remedy)
    # Reading compares the targets of rows with equal prompts, which needs the placeholders.
    samples = [replace(sample, reference={}) for sample in found.samples]
    return UnlabelledRows(samples, found.dropped, found.warnings, table.fingerprint)


def _read_images(recipe: Recipe, reader: _Reader, source: Path) -> UnlabelledRows:
    """Read the images of a folder, or one image."""
    task, tally, samples = reader.task, Tally(), []
    folder = source if source.is_dir() else source.parent
    if missing := sorted(one for one in reader.missing if IMAGE not in one.split("|")):
        needed = ", ".join(one.split("|")[0] for one in missing)
        rule, remedy = f"the rows of the task {task.name} must have: {needed}", "Add --question (and --option)."
        raise DataError("predict.question_missing", rule, place=source, remedy=remedy)
    origin = RowOrigin(folder, folder, {IMAGE: IMAGE}, max_images=recipe.images.max_per_question)
    names = []
    for number, file in enumerate(_files(folder) if source == folder else [source], 1):
        name, place = file.relative_to(folder).as_posix(), f"file {number} in order of path"
        if file.is_dir():
            tally.add("a link to a folder is not followed", place, "predict.folder_linked")
            continue
        if not _is_image(file):
            tally.add("the file must be an image", place, "predict.file_not_image")
            continue
        shown = name.encode(errors="backslashreplace").decode()
        if shown != name:
            tally.add("the name of the file must be UTF-8 text", place, "predict.file_name_not_unicode")
            continue
        try:
            sample = reader.read(name, {IMAGE: name}, origin)
            samples.append(replace(sample, reference={}, place=place))
            names.append(name)
        except RowProblem as problem:
            tally.add_problem(place, problem, private_parts(name, {IMAGE: name}, origin))
    dropped = tally.of(str(folder))
    if not samples:
        rule = "the folder must have images"
        raise DataError("predict.no_images", rule, place=folder, value="; ".join(map(str, dropped)) or "no file")
    notes = [one.notice("left out") for one in dropped]
    notes += [
        Problem("predict.context_missing", "the prompt had this context in training, but these rows have none", "", one)
        for one in recipe.prompt.context
        if one not in reader.context
    ]
    return UnlabelledRows(samples, dropped, tuple(notes), repr(names))


def _check_constants(task: Task, constants: Constants, more: set[str]) -> None:
    """Check that the task has the fields of constants, which may also be one of ``more``. Raises DataError."""
    for name in constants.fields:
        if name not in task.columns and name not in more:
            rule = f"rows of the task {task.name} have no {name}"
            option = f"--{name.rstrip('s')}"
            raise DataError("predict.constant_unknown", rule, place=option, remedy=f"Leave out {option}.")


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files and links below a folder in order, without hidden ones."""
    for file in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not is_hidden and (file.is_symlink() or not file.is_dir()):
            yield file


def _is_image(file: Path) -> bool:
    """Return whether a file is an image by its name, or DICOM without a suffix by its first bytes."""
    if is_image_name(file.name) or not file.is_file() or file.name == DICOMDIR:
        return is_image_name(file.name)
    with file.open("rb") as stream:
        return is_dicom(stream.read(HEAD_BYTES), file)
