"""One source of rows, opened for a task: its index, its columns, and the survey of its rows."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data import Dropped, RowIndex, open_index, source_folder
from toolkit.data.loading.columns import Wanted, leaking_context, resolve_columns
from toolkit.data.loading.sample_set import SampleSet
from toolkit.data.loading.survey import Survey, Surveyor, load_survey, save_survey, survey_file, take_survey
from toolkit.data.splits import RowKeys
from toolkit.data.task import RowOrigin, Task
from toolkit.data.unusable_rows import total
from toolkit.errors import DataError, DataProblems, Problem
from toolkit.recipe import Recipe

FIRST_ROWS = 200
"""Rows whose columns decide how the first pass reads; another look is taken where a later row changes that."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """All usable rows of one source, the keys they are compared by, and what was counted."""

    samples: SampleSet
    keys: RowKeys
    dropped: tuple[Dropped, ...]
    notices: tuple[Problem, ...]
    """Warnings, the gravest first."""


def read_file(recipe: Recipe, task: Task, source: str, image_root: Path | None = None, split: str = "train") -> Loaded:
    """Every usable row of one source, read as the recipe says for a split.

    ``image_root`` goes before the recipe's; where neither is given it is the folder of the rows.

    Raises:
        DataError: the source or a column is not there (all such problems at once), no row can be used, or more rows
            than ``data.max_dropped`` cannot.
    """
    wanted = wanted_columns(recipe, task, split)
    index, row_source, survey = _open(task, wanted, source, image_root or recipe.dataset.image_root)
    dropped = (*index.skipped, *survey.dropped)
    _check_dropped(dropped, index, len(survey.rows), recipe.dataset.max_dropped)
    notices = tuple(_notices(task, wanted, row_source, index, survey))
    samples = SampleSet(task, index, row_source, survey.rows, survey.links)
    return Loaded(samples, survey.keys, dropped, notices)


def wanted_columns(recipe: Recipe, task: Task, split: str = "train") -> Wanted:
    """What the recipe says about columns, with the task's settings for a split."""
    by = recipe.results_by if recipe.evaluate else ()
    settings = task.settings(recipe, split)
    columns, group, context = recipe.dataset.columns, recipe.dataset.group, recipe.prompt.context
    return Wanted(columns, group, context, by, recipe.images.max_per_question, settings)


class _FirstPass:
    """A survey in the pass that builds the index, with the columns that the first rows show."""

    def __init__(self, task: Task, make_source: Callable[[Sequence[str]], RowOrigin]) -> None:
        self._task, self._make_source = task, make_source
        self._first: list[tuple[int, str, Mapping[str, Any]]] = []
        self._surveyor: Surveyor | None = None

    def look(self, number: int, name: str, row: Mapping[str, Any]) -> None:
        if self._surveyor is not None:
            self._surveyor.look(number, name, row)
        else:
            self._first.append((number, name, row))
            if len(self._first) == FIRST_ROWS:
                self._start()

    def done(self, source: RowOrigin, name: str) -> Survey | None:
        """The survey, if there was such a pass and rows were read in the way that all columns ask for."""
        if self._first:
            self._start()
        fits = self._surveyor is not None and self._surveyor.source == source
        return self._surveyor.done(name) if self._surveyor and fits else None

    def _start(self) -> None:
        self._surveyor = Surveyor(
            self._task, self._make_source(list(dict.fromkeys(c for _, _, row in self._first for c in row)))
        )
        for one in self._first:
            self._surveyor.look(*one)
        self._first.clear()


def _open(task: Task, wanted: Wanted, source: str, image_root: Path | None) -> tuple[RowIndex, RowOrigin, Survey]:
    root = image_root or source_folder(source)
    first_pass = _FirstPass(task, lambda columns: _row_source(task, wanted, (source, root), columns))
    index = open_index(source, id_column=wanted.columns.get("id"), visit=None if task.link else first_pass.look)
    _check_columns(task, wanted, index, image_root)
    # Pictures that lie inside the source were put beside its index, wherever other pictures are.
    root = index.image_root if index.facts.stores_pictures else image_root or index.image_root
    row_source = _row_source(task, wanted, (source, root), index.columns)
    file = survey_file(task, row_source, index)
    survey = load_survey(file)
    if survey is None:
        survey = first_pass.done(row_source, source) or take_survey(task, row_source, index)
        if survey.lasts:
            save_survey(survey, file)
    return index, row_source, survey


def _row_source(task: Task, wanted: Wanted, where: tuple[str, Path | None], columns: Sequence[str]) -> RowOrigin:
    source, root = where
    column, _ = resolve_columns(task, wanted, columns)
    by = tuple(name for name in wanted.by if name in columns and name not in task.columns)
    # Not Path.resolve: following a link would change the folder that relative image paths start from.
    folder = Path(os.path.abspath(root or "."))  # noqa: PTH100
    return RowOrigin(Path(source), folder, column, wanted.group, wanted.context, by, wanted.max_images, wanted.settings)


def _check_columns(task: Task, wanted: Wanted, index: RowIndex, image_root: Path | None) -> None:
    _, problems = resolve_columns(task, wanted, index.columns)
    if image_root is None and index.image_root is None:
        rule, remedy = "rows with image paths must have a folder that the paths start from", "Set data.image_root."
        problems.append(Problem("data.image_root_missing", rule, "data.image_root", remedy=remedy))
    if problems:
        rule = "the recipe must fit the columns of the rows"
        raise DataProblems("data.columns_do_not_fit", rule, problems, place=index.source)


def _check_dropped(dropped: Sequence[Dropped], index: RowIndex, usable: int, most: float) -> None:
    lost = total(dropped)
    if usable and lost <= most * (lost + usable):
        return
    reasons = "".join(f"\n  {one.count:,} rows: {one.reason} ({'; '.join(one.examples)})" for one in dropped)
    raise DataError(
        "data.too_many_unusable_rows",
        f"at least one row must be usable, and unusable rows must be at most {most:.1%} (data.max_dropped)",
        place=index.source,
        value=f"{lost:,} of {lost + usable:,}",
        remedy=f"Correct the rows or data.columns, or raise data.max_dropped:{reasons}",
    )


def _notices(task: Task, wanted: Wanted, source: RowOrigin, index: RowIndex, survey: Survey) -> Iterator[Problem]:
    name, facts = index.source, index.facts
    for column in leaking_context(task, wanted, source.column):
        rule = "prompt.context should not have a column with the answer: scores say nothing about the images"
        yield Problem("data.context_has_answer", rule, name, column, "Remove it from prompt.context.")
    for note in survey.links.notes if survey.links else ():
        yield Problem("data.order_irregular", note)
    for one in (*index.skipped, *survey.dropped):
        yield one.notice("left out")
    for one in survey.noted:
        yield one.notice()
    if facts.duplicates:
        rule = "ids should be unique: repeated ids are kept as id#2, id#3, …"
        value = f"{facts.duplicates:,} repeated, such as {', '.join(facts.duplicate_examples)}"
        yield Problem("data.ids_repeated", rule, name, value)
    for column, count in survey.trimmed.items():
        yield Problem("data.blanks_removed", f"blanks around {count:,} values of {column} were removed", name)
