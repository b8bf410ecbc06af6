"""Open one source of rows for a task: its index, its columns, and the scan of its rows."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data import Dropped, RowIndex, open_index, source_folder
from toolkit.data.loading.columns import RowSettings, leaking_context, resolve_columns
from toolkit.data.loading.row_scan import RowScan, RowScanner, load_row_scan, row_scan_file, save_row_scan, scan_rows
from toolkit.data.loading.sample_set import SampleSet
from toolkit.data.splits import RowKeys
from toolkit.data.task import RowOrigin, Task
from toolkit.data.unusable_rows import total
from toolkit.errors import DataError, DataProblems, Problem
from toolkit.recipe import Recipe
from toolkit.tasks import TASKS

FIRST_ROWS = 200
"""Rows that determine the columns of the first pass. If a later row adds a relevant column, the scan is repeated."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """All usable rows of one source, their keys, and the counts."""

    samples: SampleSet
    keys: RowKeys
    dropped: tuple[Dropped, ...]
    notices: tuple[Problem, ...]
    """Warnings, most severe first."""


def read_file(recipe: Recipe, source: str, image_root: Path | None = None, split: str = "train") -> Loaded:
    """Load every usable row of one source with the recipe's settings for a split.

    ``image_root`` takes precedence over the recipe's. Without either, it is the folder of the rows.

    Raises:
        DataError: The source or columns are missing (all such problems together), no row is usable, or more rows than
            ``data.max_dropped`` are unusable.
    """
    task, requested = TASKS[recipe.data.task], row_settings(recipe, split)
    index, row_source, row_scan = _open(task, requested, source, image_root or recipe.data.image_root)
    dropped = (*index.skipped, *row_scan.dropped)
    _check_dropped(dropped, index, len(row_scan.rows), recipe.data.max_dropped)
    notices = tuple(_notices(task, requested, row_source, index, row_scan))
    samples = SampleSet(task.name, index, row_source, row_scan.rows, row_scan.links)
    return Loaded(samples, row_scan.keys, dropped, notices)


def row_settings(recipe: Recipe, split: str = "train") -> RowSettings:
    """Return the recipe's settings for rows, with the task's settings for a split."""
    by = recipe.results_by if recipe.evaluate else ()
    settings = TASKS[recipe.data.task].settings(recipe, split)
    columns, group, context = recipe.data.columns, recipe.data.group, recipe.prompt.context
    return RowSettings(columns, group, context, by, recipe.images.max_per_question, settings)


class _FirstPass:
    """A row scan in the pass that builds the index, with the columns of the first rows."""

    def __init__(self, task: Task, make_source: Callable[[Sequence[str]], RowOrigin]) -> None:
        self._task, self._make_source = task, make_source
        self._first: list[tuple[int, str, Mapping[str, Any]]] = []
        self._scanner: RowScanner | None = None

    def add(self, number: int, name: str, row: Mapping[str, Any]) -> None:
        if self._scanner is not None:
            self._scanner.add(number, name, row)
        else:
            self._first.append((number, name, row))
            if len(self._first) == FIRST_ROWS:
                self._start()

    def done(self, source: RowOrigin, name: str) -> RowScan | None:
        """Return the scan, if there was a pass and its rows were read with the final columns."""
        if self._first:
            self._start()
        fits = self._scanner is not None and self._scanner.source == source
        return self._scanner.done(name) if self._scanner and fits else None

    def _start(self) -> None:
        self._scanner = RowScanner(
            self._task, self._make_source(list(dict.fromkeys(c for _, _, row in self._first for c in row)))
        )
        for one in self._first:
            self._scanner.add(*one)
        self._first.clear()


def _open(
    task: Task, requested: RowSettings, source: str, image_root: Path | None
) -> tuple[RowIndex, RowOrigin, RowScan]:
    root = image_root or source_folder(source)
    first_pass = _FirstPass(task, lambda columns: _row_source(task, requested, (source, root), columns))
    index = open_index(source, id_column=requested.columns.get("id"), visit=None if task.link else first_pass.add)
    _check_columns(task, requested, index, image_root)
    # Embedded images are stored beside the index, so image_root does not apply to them.
    root = index.image_root if index.metadata.has_embedded_images else image_root or index.image_root
    row_source = _row_source(task, requested, (source, root), index.columns)
    file = row_scan_file(task, row_source, index)
    row_scan = load_row_scan(file)
    if row_scan is None:
        row_scan = first_pass.done(row_source, source) or scan_rows(task, row_source, index)
        if row_scan.lasts:
            save_row_scan(row_scan, file)
    return index, row_source, row_scan


def _row_source(
    task: Task, requested: RowSettings, where: tuple[str, Path | None], columns: Sequence[str]
) -> RowOrigin:
    source, root = where
    column, _ = resolve_columns(task, requested, columns)
    by = tuple(name for name in requested.by if name in columns and name not in task.columns)
    # Path.resolve would follow a link and change the folder that relative image paths start from.
    folder = Path(os.path.abspath(root or "."))  # noqa: PTH100
    return RowOrigin(
        Path(source), folder, column, requested.group, requested.context, by, requested.max_images, requested.settings
    )


def _check_columns(task: Task, requested: RowSettings, index: RowIndex, image_root: Path | None) -> None:
    _, problems = resolve_columns(task, requested, index.columns)
    if image_root is None and index.image_root is None:
        rule, remedy = "rows with image paths must have a folder that the paths start from", "Set data.image_root."
        problems.append(Problem("data.image_root_missing", rule, "data.image_root", remedy=remedy))
    if problems:
        rule = "the recipe must fit the columns of the rows"
        raise DataProblems("data.columns_do_not_fit", rule, problems, place=index.source)


def _check_dropped(dropped: Sequence[Dropped], index: RowIndex, usable: int, maximum: float) -> None:
    lost = total(dropped)
    if usable and lost <= maximum * (lost + usable):
        return
    reasons = "".join(f"\n  {one.count:,} rows: {one.reason} ({'; '.join(one.examples)})" for one in dropped)
    raise DataError(
        "data.too_many_unusable_rows",
        f"at least one row must be usable, and unusable rows must be at most {maximum:.1%} (data.max_dropped)",
        place=index.source,
        value=f"{lost:,} of {lost + usable:,}",
        remedy=f"Correct the rows or data.columns, or raise data.max_dropped:{reasons}",
    )


def _notices(
    task: Task, requested: RowSettings, source: RowOrigin, index: RowIndex, row_scan: RowScan
) -> Iterator[Problem]:
    name, metadata = index.source, index.metadata
    for column in leaking_context(task, requested, source.column):
        rule = "prompt.context should not have a column with the answer: scores say nothing about the images"
        yield Problem("data.context_has_answer", rule, name, column, "Remove it from prompt.context.")
    for note in row_scan.links.notes if row_scan.links else ():
        yield Problem("tasks.steps.order_irregular", note)
    for one in (*index.skipped, *row_scan.dropped):
        yield one.notice("left out")
    for one in row_scan.noted:
        yield one.notice()
    if metadata.duplicates:
        rule = "ids should be unique: repeated ids are kept as id#2, id#3, …"
        value = f"{metadata.duplicates:,} repeated, such as {', '.join(metadata.duplicate_examples)}"
        yield Problem("data.ids_repeated", rule, name, value)
    for column, count in row_scan.trimmed.items():
        yield Problem("data.blanks_removed", f"blanks around {count:,} values of {column} were removed", name)
