"""Sources to splits that share no group: split off missing splits, and handle leaks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.data import Dropped
from toolkit.data.loading.source import Loaded
from toolkit.data.splits import Leak, LeakReport, RowKeys, find_leaks, join_groups, leaking_rows, split_keys
from toolkit.data.unusable_rows import MAX_EXAMPLES
from toolkit.errors import DataError, Problem
from toolkit.recipe import SPLITS, Recipe
from toolkit.tasks import TASKS


@dataclass(frozen=True, slots=True)
class Part:
    """A subset of a source's usable rows: ``chosen`` has their numbers from 0, ascending."""

    loaded: Loaded
    chosen: NDArray[np.int64]

    @property
    def keys(self) -> RowKeys:
        """Keys of these rows."""
        return self.loaded.keys.take(self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def id(self, number: int) -> str:
        """Return the id of a row."""
        return self.loaded.samples[int(self.chosen[number])].id

    def without(self, marked: NDArray[np.bool_]) -> "Part":
        """Return the rows that are not marked."""
        return Part(self.loaded, self.chosen[~marked])


def split_parts(loaded: Mapping[str, Loaded], recipe: Recipe) -> tuple[dict[str, Part], list[Problem]]:
    """Return the rows of each split, and a notice for each split that was split off from train by group."""
    train = loaded["train"]
    everything = {name: Part(source, np.arange(len(source.samples))) for name, source in loaded.items()}
    nothing = Part(train, np.arange(0))
    fractions = {"test": recipe.data.split.test, "validation": recipe.data.split.validation}
    fractions = {name: fraction for name, fraction in fractions.items() if fraction and name not in loaded}
    if not fractions:
        return {name: everything.get(name, nothing) for name in SPLITS}, []
    fractions["train"] = 1 - sum(fractions.values())
    split_of = split_keys(join_groups(train.keys), list(fractions.values()), recipe.run.seed)
    everything |= {name: Part(train, np.flatnonzero(split_of == number)) for number, name in enumerate(fractions)}
    by = (
        f"the column {recipe.data.group}"
        if recipe.data.group
        else f"{TASKS[recipe.data.task].grouped_by} (data.group names no column)"
    )
    notices = [_split_off(name, everything[name], by) for name in fractions if name != "train"]
    return {name: everything.get(name, nothing) for name in SPLITS}, notices


def _split_off(name: str, part: Part, by: str) -> Problem:
    groups = len(np.unique(part.keys.groups))
    rule = f"{len(part):,} rows of {groups:,} groups were split off from train. The group is {by}"
    return Problem("data.split_by_group", rule, name)


def handle_leaks(
    parts: Mapping[str, Part], on_leak: Literal["stop", "report", "drop"]
) -> tuple[dict[str, Part], LeakReport, tuple[Dropped, ...]]:
    """Return the parts, the remaining leaks, and the removed rows.

    ``drop`` removes training rows whose group or image is in validation or test, and validation rows whose group or
    image is in test.

    Raises:
        DataError: Splits leak and ``on_leak`` is "stop", or ``drop`` leaves no training row.
    """
    report = find_leaks({name: part.keys for name, part in parts.items() if len(part)})
    if not report or on_leak == "report":
        return dict(parts), report, ()
    if on_leak == "stop":
        raise _stop(parts, report)
    kept: dict[str, Part] = {}
    removed = []
    for position, name in reversed(list(enumerate(SPLITS))):
        marked = leaking_rows(parts[name].keys, [kept[later].keys for later in SPLITS[position + 1 :]])
        kept[name] = parts[name].without(marked)
        if marked.any():
            examples = tuple(parts[name].id(int(row)) for row in np.flatnonzero(marked)[:MAX_EXAMPLES])
            later_splits = " or ".join(SPLITS[position + 1 :])
            reason = f"the group and the images must not be in {later_splits} too"
            removed.append(Dropped(name, reason, int(marked.sum()), examples, "data.row_leaks"))
    if not len(kept["train"]):
        rule = 'data.on_leak = "drop" must leave training rows'
        remedy = "Remove data.test to split data.train by group instead."
        raise DataError("data.leaks_leave_no_rows", rule, place="[data]", value=str(report), remedy=remedy)
    return {name: kept[name] for name in SPLITS}, LeakReport(), tuple(removed)


def describe_leak(leak: Leak, parts: Mapping[str, Part]) -> str:
    """Return a sentence with the extent of a leak, the affected rows of the earlier split, and examples by id."""
    pairs = (f"{parts[leak.first].id(one)} and {parts[leak.second].id(other)}" for one, other in leak.examples)
    return f"{leak}, in {leak.rows[0]:,} rows of {leak.first} (for example {', '.join(pairs)})"


def _stop(parts: Mapping[str, Part], report: LeakReport) -> DataError:
    lines = (f"\n  {describe_leak(leak, parts)}" for leak in report.leaks)
    return DataError(
        "data.splits_leak",
        f"no group, image or question must be in two splits:{''.join(lines)}\n",
        place="[data]",
        remedy='Set data.on_leak to "drop" to remove the training rows, or to "report" to keep and report them. '
        "Without data.test, the rows of data.train are split by group.",
    )
