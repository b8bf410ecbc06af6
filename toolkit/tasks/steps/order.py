"""Order of GUI steps in their task: the previous row, missing and repeated steps, and the selected tasks."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolkit.data.cells import cell, name_of, number_of, parse_or_repair_json, text_of
from toolkit.data.episodes import FIRST, GAP, REPEATED, Links
from toolkit.data.task import RowOrigin
from toolkit.errors import DataError
from toolkit.tasks.steps.settings import StepSettings

MOST_EXAMPLES = 5
HIDDEN = ("output", "grounding", "action", "target", "coords", "bbox", "next_short_term", "next_long_term", "reason")
"""Fields of the reference, which must not enter a prompt."""

OWN = frozenset({"place", "length", "memory", "size", "frame", "settings", "notes"})
"""Computed fields of a sample. A column with the same name would be ambiguous."""

_DIGITS = re.compile(r"\d+")


@dataclass
class _Line:
    """The rows of one task in file order: numbers, steps (None if unknown), and values of the group column."""

    rows: list[int] = field(default_factory=list)
    steps: list[int | None] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)


def link(rows: Iterable[tuple[str, Mapping[str, Any]]], origin: RowOrigin) -> Links:
    """Return the position of every row in its task.

    Steps are numbered by the field ``step``, otherwise by the step of ``Grounding``'s original data, from 1 (or from 0
    if a task has a step 0). If a row of a task has no step, the task has the order of its rows in the file. Of rows
    with the same step, the first is kept. The range ``task_start`` to ``task_end`` includes both ends.

    Raises:
        DataError: The prompt would show a column of the reference or one with the name of a computed field,
            ``data.group`` splits a task, or no task is in the range.
    """
    _refuse_hidden(origin)
    lines: dict[str, _Line] = {}
    count = 0
    for number, (_, row) in enumerate(rows):
        count = number + 1
        if task := number_of(cell(row, origin, "task")):
            line = lines.setdefault(task, _Line())
            line.rows.append(number)
            line.steps.append(step_of(row, origin))
            if origin.group is not None:
                line.groups.add(name_of(row.get(origin.group)))
    _refuse_cut_tasks(lines, origin)
    found = Links(np.full(count, FIRST), np.ones(count, np.int64), np.ones(count, np.int64), np.ones(count, bool))
    irregularities = _Irregularities()
    for task, line in lines.items():
        _link_task(task, line, found, irregularities)
    notes = [*irregularities.sentences(), *_choose(lines, origin, found)]
    return Links(found.previous, found.places, found.lengths, found.chosen, tuple(f"{origin.file}: {n}" for n in notes))


def step_of(row: Mapping[str, Any], origin: RowOrigin) -> int | None:
    """Return the step number of the row, or None."""
    value = cell(row, origin, "step")
    if value is None or not text_of(value):
        value = _original(cell(row, origin, "grounding")).get("step")
    if isinstance(value, bool):
        return None
    digits = _DIGITS.findall(number_of(value)) if value is not None else []
    return int(digits[0]) if len(digits) == 1 and len(digits[0]) < 10 else None


def task_number(task: str) -> int | None:
    """Return the number that a task id is or ends with.

    >>> task_number("12"), task_number("task_012"), task_number("load")
    (12, 12, None)
    """
    match = re.search(r"(\d+)\D*$", task)
    return int(match[1]) if match else None


@dataclass
class _Irregularities:
    """Tasks with irregular steps, by irregularity."""

    gaps: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    unnumbered: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        return [
            f"{len(found):,} {'task' if len(found) == 1 else 'tasks'} {what} (for example {_some(found)})"
            for found, what in (
                (self.gaps, "with missing steps"),
                (self.repeated, "with steps that several rows have"),
                (self.unnumbered, "with rows that say no step, and so in the order of the file"),
            )
            if found
        ]


def _link_task(task: str, line: _Line, found: Links, irregularities: _Irregularities) -> None:
    steps = [step for step in line.steps if step is not None]
    if len(steps) < len(line.rows):
        irregularities.unnumbered.append(f"task {task}")
        steps = list(range(1, len(line.rows) + 1))
    start = 0 if 0 in steps else 1
    row_of: dict[int, int] = {}
    for row, step in zip(line.rows, steps, strict=True):
        row_of.setdefault(step, row)
    length = max(steps) - start + 1
    for row, step in zip(line.rows, steps, strict=True):
        found.places[row], found.lengths[row] = step - start + 1, length
        found.previous[row] = FIRST if step == start else row_of.get(step - 1, GAP)
        if row_of[step] != row:
            found.previous[row] = REPEATED
    if len(row_of) < length:
        missing = [str(step) for step in range(start, min(max(steps), start + len(row_of) + 9)) if step not in row_of]
        irregularities.gaps.append(f"task {task} lacks step {_some(missing)}")
    if twice := [str(step) for step, rows in Counter(steps).items() if rows > 1]:
        irregularities.repeated.append(f"task {task}, step {_some(twice)}")


def _choose(lines: Mapping[str, _Line], origin: RowOrigin, found: Links) -> list[str]:
    """Mark the rows in the range of tasks, and return one sentence about the others."""
    settings: StepSettings = origin.settings
    start, end = settings.task_start, settings.task_end
    if start is None and end is None:
        return []
    numbers = {task: task_number(task) for task in lines}
    unnumbered = [task for task, number in numbers.items() if number is None]
    if unnumbered:
        rule = "task ids must have a number with data.steps.task_start and task_end"
        value, remedy = unnumbered[:MOST_EXAMPLES], "Remove task_start and task_end."
        raise DataError("tasks.steps.task_without_number", rule, place=origin.file, value=value, remedy=remedy)
    low, high = -1 if start is None else start, float("inf") if end is None else end
    outside = {task for task, number in numbers.items() if number is not None and not low <= number <= high}
    if len(outside) == len(lines):
        known = [number for number in numbers.values() if number is not None]
        found_tasks = f"tasks {min(known)} to {max(known)}" if known else "no task"
        raise DataError(
            "tasks.steps.no_task_in_range",
            f"at least one task must be in the range of data.steps.task_start and task_end, {start} to {end}",
            place=origin.file,
            value=found_tasks,
            remedy="Correct the range.",
        )
    for task in outside:
        found.chosen[lines[task].rows] = False
    rows = int((~found.chosen).sum())
    return [f"{len(outside):,} tasks ({rows:,} rows) are outside data.steps.task_start to task_end"] if outside else []


def _original(value: Any) -> Mapping[str, Any]:
    """Return the step that ``Grounding`` was made from, or an empty mapping."""
    for key in ("ground_truth", "original_step_data"):
        try:
            value = parse_or_repair_json(value)[0] if isinstance(value, str) else value
        except ValueError:
            return {}
        if not isinstance(value, Mapping):
            return {}
        value = value.get(key, value)
    return value if isinstance(value, Mapping) else {}


def _refuse_hidden(origin: RowOrigin) -> None:
    if taken := sorted(OWN & {*origin.context, *origin.by}):
        raise DataError(
            "tasks.steps.column_name_reserved",
            "columns of prompt.context and evaluate.by must not have the name of a field of the sample",
            place=origin.file,
            value=taken,
            remedy="Rename the column.",
        )
    hidden = {origin.column[name] for name in HIDDEN if name in origin.column}
    if shown := sorted(hidden & set(origin.context)):
        raise DataError(
            "tasks.steps.context_shows_reference",
            "prompt.context must not name a column of the reference",
            place=origin.file,
            value=shown,
            remedy="Remove it, because it holds the answer.",
        )


def _refuse_cut_tasks(lines: Mapping[str, _Line], origin: RowOrigin) -> None:
    if cut := [task for task, line in lines.items() if len(line.groups) > 1]:
        raise DataError(
            "tasks.steps.group_splits_task",
            f'the column "{origin.group}" of data.group must have one value in each task',
            place=origin.file,
            value=f"several in {len(cut):,} tasks, such as {cut[0]}",
            remedy="Remove data.group (the task is the group), or name a column that has whole tasks.",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_EXAMPLES]) + (", …" if len(names) > MOST_EXAMPLES else "")
