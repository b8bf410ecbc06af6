"""Load the data of a recipe: samples of each split, unusable rows, leaks and warnings."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.data import Dropped
from toolkit.data.loading.sample_set import SampleSet, limit
from toolkit.data.loading.source import Loaded, read_file
from toolkit.data.loading.split_sources import Part, describe_leak, handle_leaks, split_parts
from toolkit.data.splits import LeakReport
from toolkit.errors import DataError, DataProblems, Problem
from toolkit.recipe import SPLITS, Recipe
from toolkit.tasks import TASKS

__all__ = ["DataSplits", "Loaded", "SampleSet", "load_data", "read_file", "synthetic_rows_file"]


@dataclass(frozen=True, slots=True)
class DataSplits:
    """The samples of a run. A split that the recipe does not request is empty."""

    train: SampleSet
    validation: SampleSet
    test: SampleSet
    dropped: tuple[Dropped, ...]
    """Unusable rows and rows removed because of leaks, by source and reason."""
    leaks: LeakReport
    """Remaining leaks between splits."""
    notices: tuple[Problem, ...]
    """Warnings, most severe first."""
    fingerprint: str
    """Hash of task, columns, and the rows of each split. Equal data has the same fingerprint on every machine."""

    @property
    def announcements(self) -> tuple[str, ...]:
        """Return the warnings as sentences."""
        return tuple(map(str, self.notices))


def load_data(recipe: Recipe, folder: Path | None = None) -> DataSplits:
    """Load all splits of a recipe. Validation and test are split off by group if they have no file.

    Args:
        recipe: Its [data], [prompt] context, [evaluate] by and the seed are used.
        folder: Folder of synthetic data (train, validation and test, .json or .csv, images below) that replaces the
            recipe's files.

    Raises:
        DataError: A source or column is missing, too many rows are unusable, or splits leak and ``on_leak`` is "stop".
    """
    loaded = _read_sources(_sources(recipe, folder), recipe, folder)
    parts, split_off = split_parts(loaded, recipe)
    parts, leaks, removed = handle_leaks(parts, recipe.data.on_leak)
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


def synthetic_rows_file(folder: Path, split: str) -> Path | None:
    """Return the file of synthetic rows of a split in its folder, or None if the split has no rows."""
    files = (folder / f"{split}{suffix}" for suffix in (".json", ".csv"))
    return next((file for file in files if file.is_file()), None)


def _sources(recipe: Recipe, folder: Path | None) -> dict[str, str]:
    """Return split -> file, folder or Hub name, for the splits with a source."""
    if folder is not None:
        found = {name: str(file) for name in SPLITS if (file := synthetic_rows_file(folder, name)) is not None}
    else:
        found = {name: source for name in SPLITS if (source := getattr(recipe.data, name)) is not None}
    if "train" not in found:
        rule = "the data must have training rows"
        remedy = "Set data.train to a file, or add [data.synthetic] to generate synthetic data."
        raise DataError("data.no_training_rows", rule, place=folder or "[data]", remedy=remedy)
    return found


def _read_sources(sources: dict[str, str], recipe: Recipe, image_root: Path | None) -> dict[str, Loaded]:
    loaded, problems = {}, []
    for name, source in sources.items():
        try:
            loaded[name] = read_file(recipe, source, image_root, name)
        except DataError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        found = [problem for error in problems for problem in error.problems]
        raise DataProblems("data.unusable", "the data must be usable", found, place="[data]")
    return loaded


def _limited(name: str, part: Part, recipe: Recipe) -> SampleSet:
    maximum = getattr(recipe.data, f"limit_{name}")
    samples = part.loaded.samples.with_settings(TASKS[recipe.data.task].settings(recipe, name))
    return samples.take(limit(part.loaded.samples.rows[part.chosen], maximum, recipe.run.seed, name))


def _fingerprint(sets: Mapping[str, SampleSet]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, samples in sets.items():
        source = samples.source
        settings = (name, samples.task, sorted(source.column.items()), source.group, source.context, source.settings)
        digest.update(repr((*settings, samples.table.fingerprint, len(samples))).encode())
        digest.update(samples.rows.astype("<i8").tobytes())
    return digest.hexdigest()
