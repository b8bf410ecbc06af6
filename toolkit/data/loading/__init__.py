"""Data of a recipe: samples of each split, what was left out, what leaks, and what the user must be told."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.data import Dropped
from toolkit.data.loading.sample_set import SampleSet, limit
from toolkit.data.loading.source import Loaded, read_file
from toolkit.data.loading.split_sources import Part, describe_leak, handle_leaks, split_parts
from toolkit.data.splits import LeakReport
from toolkit.data.task import Task
from toolkit.errors import DataError, DataProblems, Problem
from toolkit.recipe import SPLITS, Recipe

__all__ = ["DataSplits", "Loaded", "SampleSet", "load_data", "practice_rows", "read_file"]


@dataclass(frozen=True, slots=True)
class DataSplits:
    """The samples of a run. A split that the recipe does not ask for has none."""

    train: SampleSet
    validation: SampleSet
    test: SampleSet
    dropped: tuple[Dropped, ...]
    """Rows that could not be used, and rows removed because they leak, by source and reason."""
    leaks: LeakReport
    """What stands in two splits all the same."""
    notices: tuple[Problem, ...]
    """Warnings, the gravest first."""
    fingerprint: str
    """Hash of task, columns, and the rows of each split: the same data have the same on every machine."""

    @property
    def announcements(self) -> tuple[str, ...]:
        """Return the warnings as sentences."""
        return tuple(map(str, self.notices))


def load_data(recipe: Recipe, task: Task, folder: Path | None = None) -> DataSplits:
    """All splits of a recipe; validation and test are split off by group where no file is named.

    Args:
        recipe: read for [data], [prompt] context, [evaluate] by and the seed.
        task: the one that ``data.task`` names.
        folder: where practice data were written (train, validation and test, .json or .csv, images below), instead of
            the files that the recipe names.

    Raises:
        DataError: a source or column is missing, too many rows are unusable, or splits leak and ``on_leak`` is "stop".
    """
    loaded = _read_sources(_sources(recipe, folder), recipe, task, folder)
    parts, split_off = split_parts(loaded, recipe, task)
    parts, leaks, removed = handle_leaks(parts, recipe.dataset.on_leak)
    sets = {name: _limited(name, part, recipe) for name, part in parts.items()}
    notices = [Problem("data.splits_leak", describe_leak(leak, parts), "[data]") for leak in leaks.leaks]
    notices += [notice for source in loaded.values() for notice in source.notices]
    notices += [*(one.notice("left out") for one in removed), *split_off]
    for name, part in parts.items():
        if len(sets[name]) < len(part):
            rule = f"{len(sets[name]):,} of {len(part):,} rows are used, drawn by the seed"
            notices.append(Problem("data.rows_limited", rule, name))
    dropped = (*(one for source in loaded.values() for one in source.dropped), *removed)
    return DataSplits(**sets, dropped=dropped, leaks=leaks, notices=tuple(notices), fingerprint=_fingerprint(sets))


def practice_rows(folder: Path, split: str) -> Path | None:
    """The file of practice rows of a split in the folder that they were written into; None: it has none."""
    files = (folder / f"{split}{suffix}" for suffix in (".json", ".csv"))
    return next((file for file in files if file.is_file()), None)


def _sources(recipe: Recipe, folder: Path | None) -> dict[str, str]:
    """Split -> file, folder or Hub name, for the splits that have one."""
    if folder is not None:
        found = {name: str(file) for name in SPLITS if (file := practice_rows(folder, name)) is not None}
    else:
        found = {name: source for name in SPLITS if (source := getattr(recipe.dataset, name)) is not None}
    if "train" not in found:
        rule = "the data must have training rows"
        remedy = "Set data.train to a file, or add [data.phantom] to generate synthetic data."
        raise DataError("data.no_training_rows", rule, place=folder or "[data]", remedy=remedy)
    return found


def _read_sources(sources: dict[str, str], recipe: Recipe, task: Task, image_root: Path | None) -> dict[str, Loaded]:
    loaded, problems = {}, []
    for name, source in sources.items():
        try:
            loaded[name] = read_file(recipe, task, source, image_root, name)
        except DataError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        found = [problem for error in problems for problem in error.problems]
        raise DataProblems("data.unusable", "the data must be usable", found, place="[data]")
    return loaded


def _limited(name: str, part: Part, recipe: Recipe) -> SampleSet:
    most = getattr(recipe.dataset, f"limit_{name}")
    samples = part.loaded.samples.with_settings(part.loaded.samples.task.settings(recipe, name))
    return samples.take(limit(part.loaded.samples.rows[part.chosen], most, recipe.run.seed, name))


def _fingerprint(sets: Mapping[str, SampleSet]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, samples in sets.items():
        source = samples.source
        settings = (
            name,
            samples.task.name,
            sorted(source.column.items()),
            source.group,
            source.context,
            source.settings,
        )
        digest.update(repr((*settings, samples.table.fingerprint, len(samples))).encode())
        digest.update(samples.rows.astype("<i8").tobytes())
    return digest.hexdigest()
