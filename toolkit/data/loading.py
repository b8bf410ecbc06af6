"""Load the data of a recipe: samples of each split, unusable rows, leaks and warnings."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.data.groups import NO_GROUPS, PATIENT_FOLDER
from toolkit.data.image_sizes import check_image_sizes
from toolkit.data.row_counts import MAX_EXAMPLES, RowCount
from toolkit.data.rows import UsableRows, check_dropped, read_alike, read_file
from toolkit.data.sample_set import SampleSet, limit
from toolkit.data.split_sources import recipe_sources
from toolkit.data.splits import (
    Leak,
    LeakReport,
    RowKeys,
    find_leaks,
    join_groups,
    leaking_rows,
    patients_in_several,
    split_keys,
)
from toolkit.data.task import GROUP_FIELDS, Found, Task
from toolkit.errors import DataError, DataProblems, Problem, list_places
from toolkit.recipe import SPLITS, Recipe


@dataclass(frozen=True, slots=True)
class DataSplits:
    """The samples of a run. A split that the recipe does not request is empty."""

    train: SampleSet
    validation: SampleSet
    test: SampleSet
    dropped: tuple[RowCount, ...]
    """Unusable rows and rows removed because of leaks, by source and reason."""
    leaks: LeakReport
    """Remaining leaks between splits."""
    warnings: tuple[Problem, ...]
    """Warnings about leaks, sources, removed rows, splits by group, found settings and limits, in this order."""
    fingerprint: str
    """Hash of task, columns, and the rows of each split. Equal data has the same fingerprint on every machine."""
    sources: tuple[str, ...] = ()
    """Each source with its format and number of rows, such as ``data/train.json: JSON, 1,200 rows``."""
    group_columns: tuple[str, ...] = ()
    """Columns of the group, first choice first. Their values can name patients."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the task that its rows decide (``Found.values``)."""

    @property
    def warning_texts(self) -> tuple[str, ...]:
        """Return the warnings as text."""
        return tuple(map(str, self.warnings))


@dataclass(frozen=True, slots=True)
class SplitRows:
    """The rows of one split: ``chosen`` has their positions in ``usable``, from 0, ascending."""

    usable: UsableRows
    chosen: NDArray[np.int64]

    @property
    def keys(self) -> RowKeys:
        """Keys of these rows."""
        return self.usable.keys.take(self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def place(self, number: int) -> str:
        """Return the number of a row in its source, such as ``row 12``."""
        samples = self.usable.samples
        return samples.table.place(int(samples.rows[self.chosen[number]]))

    def identifiers(self, column: str) -> NDArray[np.int64]:
        """Return the keys of a column that looks like an identifier. Empty if the source does not have it."""
        keys = self.usable.identifiers.get(column)
        return np.zeros(0, np.int64) if keys is None else keys[self.chosen]

    def without(self, marked: NDArray[np.bool_]) -> "SplitRows":
        """Return the rows that are not marked."""
        return SplitRows(self.usable, self.chosen[~marked])


def load_data(recipe: Recipe, task: Task, synthetic_folder: Path | None = None) -> DataSplits:
    """Load all splits of a recipe. Validation and test are split off by group if they have no source.

    Args:
        recipe: Its [data], [prompt] context, [evaluate] by and the seed are used.
        task: The task that ``data.task`` names.
        synthetic_folder: Folder of synthetic data (train, validation and test, .json or .csv, images below) that
            replaces the recipe's files.

    Raises:
        DataError: A source or column is missing, too many rows are unusable, or splits leak and ``on_leak`` is "stop".
    """
    sources, notes = _sources(recipe, synthetic_folder)
    loaded = _read_sources(sources, recipe, task, synthetic_folder)
    splits, split_off = _split_rows(loaded, recipe, task)
    patients = _check_patients(loaded, splits, recipe)
    splits, leaks, removed = _handle_leaks(splits, recipe.dataset.on_leak)
    found = _find_settings(splits, recipe, task)
    sets = {name: _limited(name, rows, recipe, found) for name, rows in splits.items()}
    return DataSplits(
        **sets,
        dropped=(*(one for source in loaded.values() for one in source.dropped), *removed),
        leaks=leaks,
        warnings=(
            *(Problem("data.splits_leak", _describe_leak(leak, splits), "[data]") for leak in leaks.leaks),
            *(warning for source in loaded.values() for warning in source.warnings),
            *notes,
            *(one.notice("left out") for one in removed),
            *patients,
            *_describe_groups(loaded, recipe, split_off),
            *found.notes,
            *_describe_limits(splits, sets),
        ),
        fingerprint=_fingerprint(sets),
        sources=tuple(dict.fromkeys(source.samples.table.description for source in loaded.values())),
        group_columns=tuple(dict.fromkeys(name for one in loaded.values() for name in one.group_columns)),
        found=found.values,
    )


def check_validation_split(data: DataSplits) -> None:
    """Check the split that validations within the training are made on.

    Raises:
        DataError: It is empty, or has a group, image or question of another split.
    """
    place = "[validation]"
    if not len(data.validation):
        rule = "the validation split must have rows"
        remedy = "Set data.validation to a file, or data.split.validation to a fraction of the rows."
        raise DataError("data.validation_split_empty", rule, place=place, remedy=remedy)
    if leaks := [leak for leak in data.leaks.leaks if "validation" in (leak.first, leak.second)]:
        rule = "the validation split must have no group, image or question of another split"
        remedy = 'Set data.on_leak = "drop", or correct the splits.'
        value = "; ".join(map(str, leaks))
        raise DataError("data.validation_split_leaks", rule, place=place, value=value, remedy=remedy)


def synthetic_rows_file(folder: Path, split: str) -> Path | None:
    """Return the file of synthetic rows of a split in its folder, or None if the split has no rows."""
    files = (folder / f"{split}{suffix}" for suffix in (".json", ".csv"))
    return next((file for file in files if file.is_file()), None)


def _sources(recipe: Recipe, synthetic_folder: Path | None) -> tuple[dict[str, str], list[Problem]]:
    """Return split -> file, folder or Hub name, for the splits with a source, and reports of splits of a source."""
    notes: list[Problem] = []
    if synthetic_folder is not None:
        found = {
            name: str(file) for name in SPLITS if (file := synthetic_rows_file(synthetic_folder, name)) is not None
        }
    else:
        found, notes = recipe_sources(recipe)
    if "train" not in found:
        rule = "the data must have training rows"
        remedy = "Set data.train to a file, or add [data.synthetic] to generate synthetic data."
        raise DataError("data.no_training_rows", rule, place=synthetic_folder or "[data]", remedy=remedy)
    return found, notes


def _read_sources(
    sources: dict[str, str], recipe: Recipe, task: Task, image_root: Path | None
) -> dict[str, UsableRows]:
    loaded, problems = dict[str, UsableRows](), list[DataError]()
    for name, source in sources.items():
        try:
            loaded[name] = read_file(recipe, task, source, image_root, name)
        except DataError as error:
            problems.append(error)
    if not problems:
        loaded = read_alike(loaded, lambda name, whole: read_file(recipe, task, sources[name], image_root, name, whole))
    for rows in loaded.values():
        try:
            check_dropped(rows, recipe.dataset.max_dropped)
        except DataError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        found = _of_sources(problems, len(sources))
        raise DataProblems("data.unusable", "the data must be usable", found, place="[data]")
    return loaded


def _of_sources(errors: Sequence[DataError], sources: int) -> list[Problem]:
    """Return the problems of several sources. One that every source has, such as a missing column, is listed once."""
    is_everywhere = len(errors) == sources
    common = [one for one in errors[0].problems if is_everywhere and all(one in error.problems for error in errors)]
    found = list(common)
    for error in errors:
        for problem in error.problems:
            if problem not in common:  # The columns of a source are problems of a key, which does not name the source.
                place = problem.place if problem.place.startswith(error.place) else f"{error.place}: {problem.place}"
                found.append(replace(problem, place=place))
    return found


def _split_rows(
    loaded: Mapping[str, UsableRows], recipe: Recipe, task: Task
) -> tuple[dict[str, SplitRows], list[Problem]]:
    """Return the rows of each split, and a warning for each split that was split off from train by group."""
    train = loaded["train"]
    everything = {name: SplitRows(source, np.arange(len(source.samples))) for name, source in loaded.items()}
    nothing = SplitRows(train, np.arange(0))
    fractions = {"test": recipe.dataset.split.test, "validation": recipe.dataset.split.validation}
    fractions = {name: fraction for name, fraction in fractions.items() if fraction and name not in loaded}
    if not fractions:
        return {name: everything.get(name, nothing) for name in SPLITS}, []
    fractions["train"] = 1 - sum(fractions.values())
    group = _describe_group(train, recipe, task)
    split_of = _split_off(train, list(fractions.values()), recipe, group)
    everything |= {name: SplitRows(train, np.flatnonzero(split_of == number)) for number, name in enumerate(fractions)}
    warnings = [_split_warning(name, everything[name], group) for name in fractions if name != "train"]
    return {name: everything.get(name, nothing) for name in SPLITS}, warnings


def _split_off(train: UsableRows, fractions: Sequence[float], recipe: Recipe, group: str) -> NDArray[np.int64]:
    try:
        return split_keys(join_groups(train.keys), fractions, recipe.run.seed)
    except DataError as error:
        remedy = f'{error.remedy} The group is {group}. data.group = "{NO_GROUPS}" makes it the first image.'
        raise DataError(error.code, error.rule, place=error.place, value=error.value, remedy=remedy) from None


def _describe_group(rows: UsableRows, recipe: Recipe, task: Task) -> str:
    if rows.group_columns:
        return f"the column {', otherwise '.join(rows.group_columns)}"
    reason = "switches groups off" if recipe.dataset.group else "names no column"
    return f"{task.grouped_by} (data.group {reason})"


def _describe_groups(
    loaded: Mapping[str, UsableRows], recipe: Recipe, split_off: Sequence[Problem]
) -> Iterator[Problem]:
    """Yield what the group is, if the recipe does not say it, and whether the sources can be compared by it."""
    yield from split_off
    if recipe.dataset.group is not None:
        return
    names = {name: _describe_group(rows, recipe, rows.samples.task) for name, rows in loaded.items()}
    fields = {tuple(field for field in GROUP_FIELDS if field in one.samples.origin.column) for one in loaded.values()}
    if len(fields) > 1:
        rule = "the splits must have the same group, otherwise a patient in two splits is not found"
        value = ", ".join(f"{name}: {group}" for name, group in names.items())
        yield Problem("data.group_differs", rule, "[data]", value, "Add the column of the patient to every file.")
    elif not split_off and recipe.dataset.synthetic is None:
        for one in dict.fromkeys(rows.group_columns for rows in loaded.values() if rows.group_columns):
            rule, remedy = f"The group is the column {', otherwise '.join(one)}", f'"{NO_GROUPS}" switches groups off.'
            yield Problem("data.group_found", rule, "data.group", remedy=remedy)


def _check_patients(
    loaded: Mapping[str, UsableRows], splits: Mapping[str, SplitRows], recipe: Recipe
) -> tuple[Problem, ...]:
    """Return warnings about columns that look like patients who are in two splits.

    Raises:
        DataError: There is such a column, ``on_leak`` is not "report", and the recipe does not name the group.
    """
    train, found, group = loaded["train"], [], recipe.dataset.group
    columns = dict.fromkeys(column for rows in loaded.values() for column in rows.identifiers)
    for column in columns:
        is_split = sum(len(rows) > 0 for rows in splits.values()) > len(loaded) and column in train.identifiers
        is_split &= group is None  # the groups of the recipe may be those of the studies of a patient
        grouped = [(train.identifiers[column], join_groups(train.keys))] if is_split else []
        several = patients_in_several(grouped, [rows.identifiers(column) for rows in splits.values()])
        if several is not None:
            found.append(_patient_problem(column, *several, group))
    if found and group is None and recipe.dataset.on_leak != "report":
        raise DataProblems("data.patients_in_two_splits", "no patient must be in two splits", found, place="[data]")
    return tuple(found)


def _patient_problem(column: str, values: int, rows: int, group: str | None) -> Problem:
    if group is not None:
        patients = f"{values:,} {'patient' if values == 1 else 'patients'} of the column {column}"
        rule = f"no patient should be in two splits ({patients} in {rows:,} rows)"
        return Problem("data.patient_in_two_splits", rule, "data.group", group, f'Set data.group = "{column}".')
    if column == PATIENT_FOLDER:
        rule = (
            "folders of images look like patients, but no column has the group: "
            f"{values:,} {'folder is' if values == 1 else 'folders are'} in {rows:,} rows of several groups or splits"
        )
        remedy = f'Add a column patient_id to the rows. data.group = "{NO_GROUPS}" makes the group the first image.'
        return Problem("data.patient_folder_unused", rule, "data.group", remedy=remedy)
    return Problem(
        "data.patient_column_unused",
        "the column looks like the identifier of a patient or an examination, but the rows are not grouped by it: "
        f"{values:,} {'value is' if values == 1 else 'values are'} in {rows:,} rows of several groups or splits",
        "data.group",
        column,
        f'Set data.group = "{column}" if the rows of a value belong together, otherwise data.group = "{NO_GROUPS}".',
    )


def _split_warning(name: str, rows: SplitRows, group: str) -> Problem:
    groups = len(np.unique(rows.keys.groups))
    rule = f"{len(rows):,} rows of {groups:,} groups were split off from train. The group is {group}"
    return Problem("data.split_by_group", rule, name)


def _handle_leaks(
    splits: Mapping[str, SplitRows], on_leak: Literal["stop", "report", "drop"]
) -> tuple[dict[str, SplitRows], LeakReport, tuple[RowCount, ...]]:
    """Return the splits, the remaining leaks, and the removed rows.

    ``drop`` removes training rows whose group or image is in validation or test, and validation rows whose group or
    image is in test.

    Raises:
        DataError: Splits leak and ``on_leak`` is "stop", or ``drop`` leaves no training row.
    """
    report = find_leaks({name: rows.keys for name, rows in splits.items() if len(rows)})
    if not report or on_leak == "report":
        return dict(splits), report, ()
    if on_leak == "stop":
        raise _leak_error(splits, report)
    remaining: dict[str, SplitRows] = {}
    removed = []
    for position, name in reversed(list(enumerate(SPLITS))):
        marked = leaking_rows(splits[name].keys, [remaining[later].keys for later in SPLITS[position + 1 :]])
        remaining[name] = splits[name].without(marked)
        if marked.any():
            examples = tuple(splits[name].place(int(row)) for row in np.flatnonzero(marked)[:MAX_EXAMPLES])
            later_splits = " or ".join(SPLITS[position + 1 :])
            reason = f"the group and the images must not be in {later_splits} too"
            removed.append(RowCount(name, reason, int(marked.sum()), examples, "data.row_leaks"))
    if not len(remaining["train"]):
        rule = 'data.on_leak = "drop" must leave training rows'
        remedy = "Remove data.test to split data.train by group instead."
        raise DataError("data.leaks_leave_no_rows", rule, place="[data]", value=str(report), remedy=remedy)
    return {name: remaining[name] for name in SPLITS}, LeakReport(), tuple(removed)


def _leak_error(splits: Mapping[str, SplitRows], report: LeakReport) -> DataError:
    lines = (f"\n  {_describe_leak(leak, splits)}" for leak in report.leaks)
    return DataError(
        "data.splits_leak",
        f"no group, image or (image, question) pair must be in two splits:{''.join(lines)}\n",
        place="[data]",
        remedy='Set data.on_leak to "drop" to remove leaking rows from the earlier split, or to "report" to keep them. '
        "Without data.test, the rows of data.train are split by group.",
    )


def _describe_leak(leak: Leak, splits: Mapping[str, SplitRows]) -> str:
    """Return a sentence with the extent of a leak, the affected rows of the earlier split, and examples by row."""
    first, second = splits[leak.first], splits[leak.second]
    pairs = (
        f"{first.place(one)} of {leak.first} and {second.place(other)} of {leak.second}" for one, other in leak.examples
    )
    return f"{leak}, in {leak.rows[0]:,} rows of {leak.first} (for example {list_places(pairs)})"


def _find_settings(splits: Mapping[str, SplitRows], recipe: Recipe, task: Task) -> Found:
    """Return the settings that the rows decide, from all rows, so that a limit on the rows does not change them.

    Raises:
        DataError: The rows cannot decide them, or a row has another size than its image.
    """
    # Rows with coordinates have the size of their image.
    has_sizes = task.has_boxes or "width" in task.columns
    if task.from_rows is None and not has_sizes:
        return Found()
    samples = {name: rows.usable.samples for name, rows in splits.items()}
    chosen = {name: samples[name].take(samples[name].rows[rows.chosen]) for name, rows in splits.items()}
    if has_sizes:
        for name, found in chosen.items():
            check_image_sizes(name, found)
    if task.from_rows is None:
        return Found()
    return task.from_rows.find(task.settings(recipe, "train"), chosen)


def _limited(name: str, rows: SplitRows, recipe: Recipe, found: Found) -> SampleSet:
    maximum = getattr(recipe.dataset, f"limit_{name}")
    samples = rows.usable.samples
    chosen = limit(samples.rows[rows.chosen], maximum, recipe.run.seed, name)
    return samples.with_settings(samples.task.settings_of(recipe, name, found.values)).take(chosen)


def _describe_limits(splits: Mapping[str, SplitRows], sets: Mapping[str, SampleSet]) -> Iterator[Problem]:
    for name, rows in splits.items():
        if len(sets[name]) < len(rows):
            rule = f"{len(sets[name]):,} of {len(rows):,} rows are used, drawn by the seed"
            yield Problem("data.rows_limited", rule, name)


def _fingerprint(sets: Mapping[str, SampleSet]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, samples in sets.items():
        origin = samples.origin
        settings = (
            name,
            samples.task.name,
            sorted(origin.column.items()),
            origin.group,
            origin.context,
            origin.settings,
            *filter(None, [origin.whole, origin.preference]),
        )
        digest.update(repr((*settings, samples.table.fingerprint, len(samples))).encode())
        digest.update(samples.rows.astype("<i8").tobytes())
    return digest.hexdigest()
