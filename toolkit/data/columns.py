"""Mapping from the fields of a task to the columns of a source, and all mismatches with suggestions."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from toolkit.data.cells import fold
from toolkit.data.groups import FREE_TEXTS, NO_GROUPS, group_columns, is_identifying
from toolkit.data.image_columns import numbered_column
from toolkit.data.preferences import PreferenceColumns
from toolkit.data.row_filter import Filter
from toolkit.data.task import Task
from toolkit.errors import Problem
from toolkit.scoring.regions import XYXY, BoxFormat

MESSAGES = "messages"
"""Field and column of the turns of a conversation."""

BY = "evaluate.by"
BY_IDENTIFIES = ("evaluate.by_identifies", "results must not be reported by a column whose values identify patients")
BY_REMEDY = "Name a column with few values, such as the sex or the scanner, or remove it. results.json has the values."
"""Key, code with rule, and remedy of a column with identifiers in evaluate.by."""

_PERSONS = frozenset(
    map(fold, ("name", "full_name", "first_name", "last_name", "given_name", "family_name", "surname", "forename"))
)
"""Columns that can have names of persons. As the answer or as another field they are allowed."""

_VALUE = re.compile(r"\d{5}|[?^]|\.(png|jpe?g|tiff?|dcm|nii)\b|.{81}", re.IGNORECASE)
"""A name of a column that is a cell of the first row, in a table without a header. It can name a patient."""

MAX_NAMES = 40
"""Columns that a message lists."""

_QUESTION_AND_ANSWER = ("question", "answer")
"""Columns that only conversations of one turn of each side have."""


@dataclass(frozen=True, slots=True)
class RowSettings:
    """The recipe's settings for rows: columns, group, context, group-by columns, image limit, task settings, boxes."""

    columns: Mapping[str, str]
    group: str | None = None
    context: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    max_images: int = 8
    settings: Any = None
    filter: Filter = dataclasses.field(default_factory=dict)
    whole: tuple[str, ...] = ()
    chat: tuple[str, ...] = ()
    """Names of the tasks that read conversations (with a field ``messages``)."""
    boxes: BoxFormat | None = XYXY
    """Format of the boxes. None: the scan of the rows finds it."""
    preference: PreferenceColumns | None = None
    """Columns of the chosen and the rejected answer. None: the rows are not for DPO."""

    @property
    def preference_keys(self) -> Mapping[str, str]:
        """Return key of the recipe -> its column with an answer, for DPO."""
        return {} if self.preference is None else self.preference.keys


def resolve_columns(
    task: Task, requested: RowSettings, available: Sequence[str]
) -> tuple[dict[str, str], list[Problem]]:
    """Return field -> column for the existing columns, and one problem per mismatch.

    A field without a mapping is searched under its usual names, first exactly, then without case, blanks and
    underscores. ``GROUP_FIELDS`` are included if the recipe says nothing about groups.
    """
    fields = {field: column for field, column in requested.columns.items() if field in task.columns}
    found = {field: column for field, column in fields.items() if column in available}
    for field, names in task.columns.items():
        if field not in fields and (column := _usual(names, available, set(fields.values()))) is not None:
            found[field] = column
    if "image" in task.columns and "image" not in found and "image" not in fields:
        free = [column for column in available if column not in fields.values()]
        if (first := numbered_column(task.columns["image"], free)) is not None:
            found["image"] = first
    problems = [*_wrong_fields(task, requested), *_used_twice(fields), *_missing(task, requested, found, available)]
    return found | group_columns(task, requested.group, found, available), problems


def other_columns(
    task: Task, requested: RowSettings, column: Mapping[str, str], available: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield (field, column) of the unread columns with a usual name of a field, unless the recipe names its column."""
    used = {*column.values(), *requested.columns.values(), *requested.filter, *requested.context, *requested.by}
    used |= set(requested.preference_keys.values())
    free = [name for name in available if name not in used and name != requested.group]
    for field, names in task.columns.items():
        if field in column and field not in requested.columns:
            usual = {fold(name) for name in names}
            # pandas renames the second column "answer" to "answer.1".
            yield from ((field, name) for name in free if fold(re.sub(r"\.\d+\Z", "", name)) in usual)


def leaking_context(task: Task, requested: RowSettings, column: Mapping[str, str]) -> tuple[str, ...]:
    """Return the prompt columns that have the answer, by their usual name or by the recipe's column map."""
    usual = {fold(name) for name in task.leaking}
    fields = {field for field, names in task.columns.items() if usual & {fold(name) for name in names}}
    mapped = {column[field] for field in fields if field in column}
    return tuple(name for name in requested.context if fold(name) in usual or name in mapped)


def _usual(names: Sequence[str], available: Sequence[str], taken: set[str]) -> str | None:
    free = [column for column in available if column not in taken]
    exact = next((name for name in names if name in free), None)
    if exact is not None:
        return exact
    folded = {fold(column): column for column in reversed(free)}
    return next((folded[fold(name)] for name in names if fold(name) in folded), None)


def _wrong_fields(task: Task, requested: RowSettings) -> Iterator[Problem]:
    known = ("id", *task.columns)
    for field in requested.columns:
        if field not in known:
            rule = f"must be a field of the task {task.name}"
            yield Problem("data.field_unknown", rule, f"data.columns.{field}", remedy=_nearest(field, known))


def _used_twice(fields: Mapping[str, str]) -> Iterator[Problem]:
    for column, count in Counter(fields.values()).items():
        if count > 1:
            names = [field for field, one in fields.items() if one == column]
            rule = f"must be a column of one field, not of {' and '.join(names)}"
            remedy = f"Name another column for {' or '.join(names)}."
            yield Problem("data.column_used_twice", rule, f"data.columns.{names[-1]}", column, remedy)


def _missing(
    task: Task, requested: RowSettings, found: Mapping[str, str], available: Sequence[str]
) -> Iterator[Problem]:
    for field, column in requested.columns.items():
        if (field == "id" or field in task.columns) and column not in available:
            yield _no_column(f"data.columns.{field}", column, available)
    yield from _missing_fields(task, requested, found, available)
    by = [column for column in requested.by if column not in task.columns]
    if requested.group == NO_GROUPS and NO_GROUPS in available:
        rule = f'"{NO_GROUPS}" says that the rows have no groups, so no column must have this name'
        yield Problem("data.group_is_ambiguous", rule, "data.group", requested.group, "Rename the column.")
    group = [] if requested.group in (None, NO_GROUPS) else [requested.group]
    named_fields = {field for field in requested.by if field in {*FREE_TEXTS, "id", "image", "mask"}}
    for column in requested.by:
        has_names = column in (requested.group, *named_fields) or is_identifying(column) or fold(column) in _PERSONS
        if has_names and (column in available or column in task.columns):
            yield Problem(*BY_IDENTIFIES, BY, column, BY_REMEDY)
    named = {"data.group": group, "prompt.context": requested.context, BY: by}
    named |= {key: [column] for key, column in requested.preference_keys.items()}
    for key, columns in named.items():
        for column in columns:
            if column not in available:
                yield _no_column(key, column, (*available, NO_GROUPS) if key == "data.group" else available)


def _missing_fields(
    task: Task, requested: RowSettings, found: Mapping[str, str], available: Sequence[str]
) -> Iterator[Problem]:
    """Yield the required fields without a column. Conversations lack a question for a reason of their own."""
    is_conversation = MESSAGES in available and MESSAGES not in task.columns
    if is_conversation and any(field in task.required and field not in found for field in _QUESTION_AND_ANSWER):
        yield several_turns(task.name, requested.chat)
    for choice in sorted(task.required):
        fields = choice.split("|")
        if not any(field in found or field in requested.columns for field in fields):
            names = [name for field in fields for name in task.columns[field]]
            if is_conversation and fields[0] in _QUESTION_AND_ANSWER:
                continue
            rule = f"the rows must have a column for the field {fields[0]}, such as {', '.join(names)}"
            remedy = f"Name it in data.columns.{fields[0]}. {_nearest(names[0], available)}"
            yield Problem("data.field_without_column", rule, f"data.columns.{fields[0]}", remedy=remedy)


def several_turns(task: str, chat: Sequence[str] = ()) -> Problem:
    """Return the problem of conversations of several turns for a task that needs one question and one answer."""
    rule = (
        f"the task {task} must have rows of one question and one answer, and these are conversations. They must have "
        "exactly one turn of the user and one of the assistant, and no system message"
    )
    remedy = f'Set data.task = "{chat[0]}".' if chat else "Choose a task for conversations in data.task."
    return Problem("data.several_turns", rule, "data.task", remedy=remedy)


def looks_like_value(column: str) -> bool:
    """Return whether the name of a column is a cell of the first row, in a table without a header.

    >>> looks_like_value("images/12.png"), looks_like_value("image 1")
    (True, False)
    """
    return _VALUE.search(column) is not None


def _no_column(key: str, column: str, available: Sequence[str]) -> Problem:
    return Problem("data.column_missing", "must be a column of the rows", key, column, _nearest(column, available))


def _nearest(word: str, names: Sequence[str]) -> str:
    """Return a suggestion for a similar column, or a sentence with all columns."""
    if any(map(looks_like_value, names)):
        return f"The names of the {len(names):,} columns look like values of a row. Add a first line with their names."
    by_fold = {fold(column): column for column in names}
    close = get_close_matches(fold(word), by_fold, n=1, cutoff=0.6)
    if close:
        return f'Did you mean "{by_fold[close[0]]}"?'
    more = [f"and {len(names) - MAX_NAMES:,} more"] if len(names) > MAX_NAMES else []
    return f"Choose one of: {', '.join([*names[:MAX_NAMES], *more])}."
