"""The usable rows of one source: its index, its columns, and the scan of its rows.

Opening the same source again with the same columns reads no row.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.data.cells import fold
from toolkit.data.columns import (
    BY,
    BY_IDENTIFIES,
    BY_REMEDY,
    MESSAGES,
    RowSettings,
    leaking_context,
    looks_like_value,
    other_columns,
    resolve_columns,
)
from toolkit.data.formats.split_names import split_of
from toolkit.data.groups import NO_GROUPS, identifier_columns
from toolkit.data.image_columns import have_no_images, image_columns
from toolkit.data.index import AS_ROWS, RowIndex, open_index, source_folder
from toolkit.data.json_stream import Row
from toolkit.data.preferences import PreferenceColumns
from toolkit.data.row_counts import RowCount, total
from toolkit.data.row_scan import FIRST_ROWS, FirstPass, RowScan, scan_rows
from toolkit.data.sample_set import SampleSet
from toolkit.data.splits import RowKeys
from toolkit.data.task import GROUP_FIELDS, RowOrigin, Task
from toolkit.data.whole_numbers import Numbers, whole_columns
from toolkit.errors import DataError, DataProblems, Problem, list_problems
from toolkit.recipe import Recipe
from toolkit.scoring.regions import BOX_FORMATS, XYXY


@dataclass(frozen=True, slots=True)
class UsableRows:
    """All usable rows of one source, their keys, and the counts."""

    samples: SampleSet
    keys: RowKeys
    dropped: tuple[RowCount, ...]
    warnings: tuple[Problem, ...]
    """Warnings, most severe first."""
    identifiers: Mapping[str, NDArray[np.int64]]
    """Column that looks like an identifier of patients -> its key in each row, in the order of ``samples``."""
    numbers: Mapping[str, Numbers]
    """Column of numbers -> what kind of numbers it has."""

    @property
    def group_columns(self) -> tuple[str, ...]:
        """Return the columns of the group, or nothing if the task or the first image defines it."""
        return group_columns_of(self.samples.origin)


def read_file(
    recipe: Recipe,
    task: Task,
    source: str,
    image_root: Path | None = None,
    split: str = "train",
    whole: tuple[str, ...] = (),
) -> UsableRows:
    """Load every usable row of one source with the recipe's settings for a split. See also ``check_dropped``.

    Args:
        recipe: the recipe.
        task: its task.
        source: the name of the source in the recipe.
        image_root: takes precedence over the recipe's. Without either, it is the folder of the rows.
        split: the split of the rows.
        whole: columns of whole numbers to read without decimal points.

    Raises:
        DataError: The source or columns are missing (all such problems together).
    """
    requested = replace(row_settings(recipe, task, split), whole=whole)
    if image_root is not None:  # Synthetic data has corners in pixels, and may have too few boxes to find that out.
        requested = replace(requested, boxes=XYXY)
    index, origin, row_scan = _open(task, requested, source, image_root or recipe.dataset.image_root)
    _check_by(row_scan, source)
    dropped = (*index.skipped, *row_scan.dropped)
    warnings = tuple(_warnings(task, requested, origin, index, row_scan))
    samples = SampleSet(task, index, origin, row_scan.rows, row_scan.links)
    return UsableRows(samples, row_scan.keys, dropped, warnings, row_scan.identifiers, row_scan.numbers)


def _check_by(row_scan: RowScan, source: str) -> None:
    """Check that no column of evaluate.by has a value of its own for most rows, which identifies patients.

    Raises:
        DataError: A column has too many values.
    """
    for column, values in row_scan.by.items():
        if values > MAX_VALUES and 2 * values > len(row_scan.rows):
            code, rule = BY_IDENTIFIES
            value = f"{column}, with {values:,} values in {len(row_scan.rows):,} rows"
            raise DataError(code, rule, place=f"{source}: {BY}", value=value, remedy=BY_REMEDY)


def check_dropped(rows: UsableRows, maximum: float) -> None:
    """Check the unusable rows of a source, after ``read_alike``, which can make rows usable.

    Raises:
        DataError: No row is usable, or a larger fraction than ``maximum`` is unusable.
    """
    lost, usable = total(rows.dropped), len(rows.samples)
    if usable and lost <= maximum * (lost + usable):
        return
    reasons = list_problems(replace(one.notice(), place="") for one in rows.dropped)
    raise DataError(
        "data.too_many_unusable_rows",
        f"at least one row must be usable, and unusable rows must be at most {maximum:.1%} (data.max_dropped)",
        place=rows.samples.table.source,
        value=f"{lost:,} of {lost + usable:,}",
        remedy=f"Correct the rows or data.columns, or raise data.max_dropped:\n{reasons}",
    )


def read_alike(
    loaded: Mapping[str, UsableRows], read: Callable[[str, tuple[str, ...]], UsableRows]
) -> dict[str, UsableRows]:
    """Return the rows of all splits with the same columns of whole numbers. ``read`` reads a split with them."""
    whole = whole_columns(rows.numbers for rows in loaded.values())
    affected = [name for name, rows in loaded.items() if any(column in rows.numbers for column in whole)]
    return {**loaded, **{name: read(name, whole) for name in affected}}


def row_settings(recipe: Recipe, task: Task, split: str = "train") -> RowSettings:
    """Return the recipe's settings for rows, with the task's settings for a split.

    Only training rows have preferences. Rows that are split off from them have preferences too, which nothing reads.
    """
    dpo = recipe.dpo
    return RowSettings(
        columns=recipe.dataset.columns,
        group=recipe.dataset.group,
        context=recipe.prompt.context,
        by=recipe.results_by if recipe.evaluate else (),
        max_images=recipe.images.max_per_question,
        settings=task.settings(recipe, split),
        filter=recipe.dataset.filter,
        chat=tuple(name for name, one in recipe.tasks.items() if MESSAGES in one.columns),
        boxes=BOX_FORMATS.get(recipe.dataset.boxes) if task.has_boxes else XYXY,
        preference=PreferenceColumns(dpo.rejected, dpo.chosen) if dpo and split == "train" else None,
    )


MAX_VALUES = 20
"""Largest number of values of a column of evaluate.by that can be most rows of a small file."""

_SPLIT_COLUMNS = frozenset({"split", "splits", "subset", "partition", "datasplit"})
"""Names of columns with the split of a row, without case, blanks and underscores."""


def _open(
    task: Task, requested: RowSettings, source: str, image_root: Path | None
) -> tuple[RowIndex, RowOrigin, RowScan]:
    root = image_root or source_folder(source)
    first_pass = FirstPass(task, lambda columns: _origin(task, requested, (source, root), columns))
    id_column, visit = requested.columns.get("id"), None if task.link else first_pass.add
    index = open_index(source, id_column=id_column, chosen=requested.filter, visit=visit)
    _check_columns(task, requested, index, image_root)
    # Embedded images are stored beside the index, so image_root does not apply to them.
    root = index.image_root if index.metadata.has_embedded_images else image_root or index.image_root
    origin = _origin(task, requested, (source, root), index.columns)
    row_scan = scan_rows(task, origin, index, lambda: first_pass.done(origin, source))
    return index, origin if row_scan.boxes is None else replace(origin, boxes=row_scan.boxes), row_scan


def _origin(task: Task, requested: RowSettings, where: tuple[str, Path | None], columns: Sequence[str]) -> RowOrigin:
    source, root = where
    column, _ = resolve_columns(task, requested, columns)
    # Path.resolve would follow a link and change the folder that relative image paths start from.
    folder = Path(os.path.abspath(root or "."))  # noqa: PTH100
    group = None if requested.group == NO_GROUPS else requested.group
    patient = next((column[name] for name in GROUP_FIELDS if name in column), None)
    if task.link is not None and group is None:
        group = patient  # an episode is one group, which ``link`` checks
    return RowOrigin(
        file=Path(source),
        image_root=folder,
        column=column,
        group=group,
        context=requested.context,
        by=tuple(name for name in requested.by if name in columns and name not in task.columns),
        max_images=requested.max_images,
        settings=requested.settings,
        identifiers=identifier_columns(task, requested.group, column, columns),
        whole=tuple(name for name in requested.whole if name in columns),
        boxes=requested.boxes,
        others=tuple(one for one in other_columns(task, requested, column, columns) if one[0] in task.one_value),
        preference=requested.preference,
    )


def group_columns_of(origin: RowOrigin) -> tuple[str, ...]:
    """Return the columns of the group, first choice first."""
    if origin.group is not None:
        return (origin.group,)
    return tuple(dict.fromkeys(origin.column[name] for name in GROUP_FIELDS if name in origin.column))


def _check_columns(task: Task, requested: RowSettings, index: RowIndex, image_root: Path | None) -> None:
    column, problems = resolve_columns(task, requested, index.columns)
    if "image" in task.columns and "image" not in requested.columns:
        first = [row for _, (_, row) in zip(range(FIRST_ROWS), index, strict=False)]
        if "image" not in column or have_no_images(first, column["image"]):
            problems = _without_image_column(task, first, problems)
    has_images = "image" in column or "image" not in task.columns
    if has_images and image_root is None and index.image_root is None:
        rule, remedy = "rows with image paths must have a folder that the paths start from", "Set data.image_root."
        problems.append(Problem("data.image_root_missing", rule, "data.image_root", remedy=remedy))
    if problems and all(name.isdecimal() for name in index.columns):
        value = f"{len(index):,} records with the keys {', '.join(index.columns[:3])}, …"
        rule = "the file must have one record for each row, and its records have only numbers as names of columns"
        raise DataError("data.json_of_columns", rule, place=index.source, value=value, remedy=AS_ROWS)
    if problems:
        rule = f"the recipe must fit the columns of the rows, which are read as {index.metadata.format}"
        raise DataProblems("data.columns_do_not_fit", rule, problems, place=index.source)


def _without_image_column(task: Task, first: Sequence[Row], problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems of a source without a column of images, or whose first rows have none in it.

    If no other column looks like one, the rows have only text, which is no problem unless the task needs an image.
    """
    place = "data.columns.image"
    found = image_columns(first)
    if not found:
        return [problem for problem in problems if task.needs_image or problem.place != place]
    if looks_like_value(found[0]):
        return list(problems)
    remedy = f'Name it in {place}. Did you mean "{found[0]}"?'
    known = [replace(problem, remedy=remedy) for problem in problems if problem.place == place]
    if not known:  # a task such as chat, which does not need images, or a column without images
        rule, either = "the column with image paths must be the column of images", "Otherwise remove the column."
        known = [Problem("data.field_without_column", rule, place, found[0], f"{remedy} {either}")]
    return [*(problem for problem in problems if problem.place != place), *known]


def _warnings(
    task: Task, requested: RowSettings, origin: RowOrigin, index: RowIndex, row_scan: RowScan
) -> Iterator[Problem]:
    name, metadata = index.source, index.metadata
    for column in leaking_context(task, requested, origin.column):
        rule = "prompt.context should not have a column with the answer: scores say nothing about the images"
        yield Problem("data.context_has_answer", rule, name, column, "Remove it from prompt.context.")
    if "image" in task.columns and "image" not in origin.column:
        rule = "no column has images, so all rows have only text"
        yield Problem("data.no_image_column", rule, name, remedy="Name a column in data.columns.image if there is one.")
    yield from _unused_columns(task, requested, origin, index)
    for note in row_scan.links.notes if row_scan.links else ():
        yield Problem("data.order_irregular", note)
    yield from _box_warnings(task, requested, origin, row_scan, name)
    for one in (*index.skipped, *row_scan.dropped):
        yield one.notice("left out")
    for one in (*metadata.noted, *row_scan.noted):
        yield one.notice()
    if metadata.duplicates:
        rule = "ids should be unique: repeated ids are kept as id#2, id#3, …"
        value = f"{metadata.duplicates:,} repeated, such as {', '.join(metadata.duplicate_examples)}"
        yield Problem("data.ids_repeated", rule, name, value)
    for column in origin.whole:
        yield from _reread(column, row_scan.numbers.get(column, Numbers()), name)
    for column, count in row_scan.trimmed.items():
        yield Problem("data.blanks_removed", f"blanks around {count:,} values of {column} were removed", name)


def _unused_columns(task: Task, requested: RowSettings, origin: RowOrigin, index: RowIndex) -> Iterator[Problem]:
    """Yield columns whose name says that they have the answer or the split of a row, but which are not read."""
    used = {*origin.column.values(), *requested.filter, *requested.context, *requested.by, requested.group}
    used |= set(requested.preference_keys.values())
    free = [column for column in index.columns if column not in used]
    found: dict[str, list[str]] = {}
    for field, column in other_columns(task, requested, origin.column, index.columns):
        found.setdefault(field, []).append(column)
    for field, others in found.items():
        if task.leaking & set(task.columns[field]):
            rule = f"several columns can be the field {field}, and {origin.column[field]} is read"
            yield Problem(
                "data.several_answer_columns", rule, index.source, others, f"Name it in data.columns.{field}."
            )
    for column in free if "#" not in index.source else ():
        if fold(column) in _SPLIT_COLUMNS and len(splits := _split_values(index, column)) > 1:
            rule = f"the column {column} names splits, but it is not read, so its test rows can be in training"
            remedy = "Write each split to a file of its own, and name the files in data.train and data.test."
            yield Problem("data.split_column_unused", rule, index.source, sorted(splits), remedy)


def _split_values(index: RowIndex, column: str) -> set[str]:
    """Return values of a column that are names of splits. Two of them are enough."""
    found: set[str] = set()
    for _, row in index:
        value = row.get(column) if isinstance(row, Mapping) else None
        if isinstance(value, str) and split_of(value.strip()) is not None:
            found.add(value.strip())
        if len(found) > 1:
            break
    return found


def _box_warnings(
    task: Task, requested: RowSettings, origin: RowOrigin, row_scan: RowScan, name: str
) -> Iterator[Problem]:
    """Yield how boxes are read, if the recipe does not say it or no row needs it."""
    if task.has_boxes and requested.boxes is not None and "box_format" in origin.column:
        rule = "the rows name the format of their boxes, so data.boxes should not be set: it applies only to other rows"
        yield Problem("data.boxes_of_rows", rule, name, str(requested.boxes), "Remove data.boxes.")
    if row_scan.boxes_found:
        yield Problem("data.boxes_found", row_scan.boxes_found, name)


def _reread(column: str, numbers: Numbers, source: str) -> Iterator[Problem]:
    place = f"{source}, column {column}"
    if numbers.whole:
        rule = "whole numbers with a decimal point are read without it, because the column has missing values"
        yield Problem("data.whole_numbers", rule, place, f"{numbers.whole:,} numbers")
    if numbers.truth:
        rule = "the texts true and false are read as truth values, because the column has no other text"
        yield Problem("data.truth_values", rule, place, f"{numbers.truth:,} texts")
