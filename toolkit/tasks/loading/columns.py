"""Which column of a source holds which field of a task, and everything that does not fit, with the nearest names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from toolkit.tasks.base import Task
from toolkit.tasks.cells import fold


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the recipe says about rows: column map, group, columns for the prompt and for results, pictures, task."""

    columns: Mapping[str, str]
    group: str | None = None
    context: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    max_images: int = 8
    settings: Any = None


def resolve_columns(task: Task, wanted: Wanted, there: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Field -> column for the columns that are there, and a sentence for each thing that does not fit.

    A field that the recipe does not map is looked for under its usual names, first to the letter, then without case,
    blanks and underscores.
    """
    fields = {field: column for field, column in wanted.columns.items() if field in task.columns}
    found = {field: column for field, column in fields.items() if column in there}
    for field, names in task.columns.items():
        if field not in fields and (column := _usual(names, there, set(fields.values()))) is not None:
            found[field] = column
    return found, [*_wrong_fields(task, wanted), *_missing(task, wanted, found, there)]


def leaking_context(task: Task, wanted: Wanted, column: Mapping[str, str]) -> tuple[str, ...]:
    """The columns for the prompt that hold the answer: by their usual name, or by the recipe's column map."""
    usual = {fold(name) for name in task.leaking}
    fields = {field for field, names in task.columns.items() if usual & {fold(name) for name in names}}
    mapped = {column[field] for field in fields if field in column}
    return tuple(name for name in wanted.context if fold(name) in usual or name in mapped)


def _usual(names: Sequence[str], there: Sequence[str], taken: set[str]) -> str | None:
    free = [column for column in there if column not in taken]
    exact = next((name for name in names if name in free), None)
    if exact is not None:
        return exact
    folded = {fold(column): column for column in reversed(free)}
    return next((folded[fold(name)] for name in names if fold(name) in folded), None)


def _wrong_fields(task: Task, wanted: Wanted) -> Iterator[str]:
    known = ("id", *task.columns)
    for field in wanted.columns:
        if field not in known:
            yield f"data.columns.{field} is not a field of the task {task.name}{_nearest(field, known)}"


def _missing(task: Task, wanted: Wanted, found: Mapping[str, str], there: Sequence[str]) -> Iterator[str]:
    for field, column in wanted.columns.items():
        if (field == "id" or field in task.columns) and column not in there:
            yield f'data.columns.{field} names the column "{column}", which is not there{_nearest(column, there)}'
    for choice in sorted(task.required):
        fields = choice.split("|")
        if not any(field in found or field in wanted.columns for field in fields):
            names = [name for field in fields for name in task.columns[field]]
            hint = _nearest(names[0], there, field=fields[0])
            yield f"no column for the field {fields[0]} (looked for {', '.join(names)}){hint}"
    by = [column for column in wanted.by if column not in task.columns]
    named = {"data.group": filter(None, [wanted.group]), "prompt.context": wanted.context, "evaluate.by": by}
    for key, columns in named.items():
        for column in columns:
            if column not in there:
                yield f'{key} names the column "{column}", which is not there{_nearest(column, there)}'


def _nearest(word: str, names: Sequence[str], field: str = "") -> str:
    """The column that was probably meant, else all there are; with a field, how to name it in the recipe."""
    by_fold = {fold(column): column for column in names}
    close = get_close_matches(fold(word), by_fold, n=1, cutoff=0.6)
    if close:
        return f'; nearest: "{by_fold[close[0]]}"' + (f" (name it in data.columns.{field})" if field else "")
    return f"; there are: {', '.join(names)}" + (f" (name one in data.columns.{field})" if field else "")
