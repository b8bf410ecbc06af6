"""GUI steps as episodes: the order of the rows in their task, and the agent memory between them."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from toolkit.data.cells import cell, group_name, is_missing, number_of
from toolkit.data.episodes import FIRST, GAP, REPEATED, AgentMemoryFunctions, Links
from toolkit.data.index import RowIndex
from toolkit.data.literals import parse_or_repair_json
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import DataError, RowProblem
from toolkit.scoring.statistics import EpisodePosition
from toolkit.tasks.steps.agent_memory import EMPTY, AgentMemory, advance
from toolkit.tasks.steps.metrics import repeat_last
from toolkit.tasks.steps.schema import StepSettings, read

MAX_EXAMPLES = 5

REFERENCE_FIELDS = (
    "output",
    "grounding",
    "action",
    "target",
    "coords",
    "bbox",
    "next_short_term",
    "next_long_term",
    "reason",
)
"""Fields of the reference, which must not enter a prompt."""

COMPUTED_FIELDS = frozenset({"place", "length", "memory", "size", "frame", "settings", "notes"})
"""Computed fields of a sample. A column with the same name would be ambiguous."""

PLACEHOLDER = "(action)"
"""Column of a placeholder action, which ``read`` requires of a row without a reference. No source has this name."""

_DIGITS = re.compile(r"\d+")


def link(rows: Iterable[tuple[str, Mapping[str, Any]]], origin: RowOrigin) -> Links:
    """Return the position of every row in its task.

    Steps are numbered by the field ``step``, otherwise by the step of ``Grounding``'s original data, from 1 (or from 0
    if a task has a step 0). If a row of a task has no step, the task has the order of its rows in the file. Of rows
    with the same step, the first is kept. The range ``task_start`` to ``task_end`` includes both ends.

    Raises:
        DataError: The prompt would show a column of the reference or one with the name of a computed field,
            ``data.group`` splits a task, or no task is in the range.
    """
    _check_columns(origin)
    tasks: dict[str, _TaskRows] = {}
    count = 0
    for number, (_, row) in enumerate(rows):
        count = number + 1
        try:
            task, step = number_of(cell(row, origin, "task")), step_of(row, origin)
            group = "" if origin.group is None else group_name(row.get(origin.group))
        except RowProblem:
            continue  # ``read`` reports the row
        if task:
            of_task = tasks.setdefault(task, _TaskRows())
            of_task.rows.append(number)
            of_task.steps.append(step)
            if origin.group is not None:
                of_task.groups.add(group)
    _check_groups(tasks, origin)
    found = Links(np.full(count, FIRST), np.ones(count, np.int64), np.ones(count, np.int64), np.ones(count, bool))
    place_of = rows.place if isinstance(rows, RowIndex) else "row {}".format
    irregularities = _Irregularities()
    for of_task in tasks.values():
        _link_task(of_task, f"the task of {place_of(of_task.rows[0])}", found, irregularities)
    notes = [*irregularities.sentences(), *_select_tasks(tasks, origin, found)]
    return Links(found.previous, found.places, found.lengths, found.chosen, tuple(f"{origin.file}: {n}" for n in notes))


def step_of(row: Mapping[str, Any], origin: RowOrigin) -> int | None:
    """Return the step number of the row, or None."""
    value = cell(row, origin, "step")
    if is_missing(value):
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


def episode_position(sample: Sample) -> EpisodePosition:
    """Return the position in the episode, which is the row's task."""
    return EpisodePosition(sample.fields["task"], sample.fields["place"], sample.fields["length"])


def with_agent_memory(sample: Sample, memory: AgentMemory) -> Sample:
    """Return the sample with this agent memory in its prompt."""
    return replace(sample, fields={**sample.fields, "memory": memory})


def place_columns(sample: Sample) -> dict[str, Any]:
    """Return Task_id, step (position from 1) and image (its path)."""
    image = str(sample.images[0].path) if sample.images else ""
    return {"Task_id": sample.fields["task"], "step": sample.fields["place"], "image": image}


def value_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return action, target and coords (pixels of the screenshot), or None for missing values."""
    return {"action": values.get("action"), "target": values.get("target"), "coords": values.get("place")}


def open_row(name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
    """Return the sample of a row for prediction. Any answer in the row is ignored.

    Raises:
        RowProblem: The row has no task, goal or screenshot, or repeats an earlier step.
    """
    column = {field: name for field, name in origin.column.items() if field not in REFERENCE_FIELDS}
    origin = replace(origin, column={**column, "action": PLACEHOLDER})
    return replace(read(name, {**row, PLACEHOLDER: origin.settings.actions[0]}, origin), reference={})


AGENT_MEMORY = AgentMemoryFunctions(
    title="whole tasks",
    position=episode_position,
    shown=lambda sample: sample.fields["settings"].shows_memory,
    held=lambda sample: sample.fields["memory"],
    start=lambda sample: EMPTY,
    put=with_agent_memory,
    memory_of=AgentMemory,
    advance=advance,
    plain=asdict,
    place_columns=place_columns,
    value_columns=value_columns,
    baselines={"repeat-last baseline": repeat_last},
    open_fields=frozenset({"task", "image", "question"}),
    open_row=open_row,
)


@dataclass
class _TaskRows:
    """The rows of one task in file order: numbers, steps (None if unknown), and values of the group column."""

    rows: list[int] = field(default_factory=list)
    steps: list[int | None] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)


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
                (self.repeated, "with repeated steps"),
                (self.unnumbered, "with unnumbered steps, in the order of the file"),
            )
            if found
        ]


def _link_task(of_task: _TaskRows, name: str, found: Links, irregularities: _Irregularities) -> None:
    """Set places, lengths and previous rows of one task, and note its irregularities."""
    steps = [step for step in of_task.steps if step is not None]
    if len(steps) < len(of_task.rows):
        irregularities.unnumbered.append(name)
        steps = list(range(1, len(of_task.rows) + 1))
    start = 0 if 0 in steps else 1
    row_of: dict[int, int] = {}
    for row, step in zip(of_task.rows, steps, strict=True):
        row_of.setdefault(step, row)
    length = max(steps) - start + 1
    for row, step in zip(of_task.rows, steps, strict=True):
        found.places[row], found.lengths[row] = step - start + 1, length
        found.previous[row] = FIRST if step == start else row_of.get(step - 1, GAP)
        if row_of[step] != row:
            found.previous[row] = REPEATED
    if len(row_of) < length:
        missing = [str(step) for step in range(start, min(max(steps), start + len(row_of) + 9)) if step not in row_of]
        irregularities.gaps.append(f"{name} lacks step {_some(missing)}")
    if repeated := [str(step) for step, rows in Counter(steps).items() if rows > 1]:
        irregularities.repeated.append(f"{name}, step {_some(repeated)}")


def _select_tasks(tasks: Mapping[str, _TaskRows], origin: RowOrigin, found: Links) -> list[str]:
    """Mark the rows in the range of tasks, and return one sentence about the others."""
    settings: StepSettings = origin.settings
    start, end = settings.task_start, settings.task_end
    if start is None and end is None:
        return []
    numbers = {task: task_number(task) for task in tasks}
    unnumbered = [task for task, number in numbers.items() if number is None]
    if unnumbered:
        rule = "task ids must have a number with data.steps.task_start and task_end"
        value, remedy = f"{len(unnumbered):,} of {len(tasks):,} tasks have none", "Remove task_start and task_end."
        raise DataError("tasks.steps.task_without_number", rule, place=origin.file, value=value, remedy=remedy)
    low, high = -1 if start is None else start, float("inf") if end is None else end
    outside = {task for task, number in numbers.items() if number is not None and not low <= number <= high}
    if len(outside) == len(tasks):
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
        found.chosen[tasks[task].rows] = False
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


def _check_columns(origin: RowOrigin) -> None:
    if taken := sorted(COMPUTED_FIELDS & {*origin.context, *origin.by}):
        raise DataError(
            "tasks.steps.column_name_reserved",
            "columns of prompt.context and evaluate.by must not have the name of a field of the sample",
            place=origin.file,
            value=taken,
            remedy="Rename the column.",
        )
    of_reference = {origin.column[name] for name in REFERENCE_FIELDS if name in origin.column}
    if shown := sorted(of_reference & set(origin.context)):
        raise DataError(
            "tasks.steps.context_shows_reference",
            "prompt.context must not name a column of the reference",
            place=origin.file,
            value=shown,
            remedy="Remove it, because it contains the answer.",
        )


def _check_groups(tasks: Mapping[str, _TaskRows], origin: RowOrigin) -> None:
    if split := [task for task, of_task in tasks.items() if len(of_task.groups) > 1]:
        raise DataError(
            "tasks.steps.group_splits_task",
            f'the column "{origin.group}" of the group must have one value in each task',
            place=origin.file,
            value=f"several in {len(split):,} of {len(tasks):,} tasks",
            remedy='Set data.group to "none" (the task is the group), or to a column that has whole tasks.',
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_EXAMPLES]) + (", …" if len(names) > MAX_EXAMPLES else "")
