"""Given completions, scored with a recipe's rewards, each with the reason for its score."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.errors import DataError
from toolkit.recipe import Recipe
from toolkit.rewards import Explanation, RewardTable, explain, reward_table
from toolkit.sample import Answer, Sample
from toolkit.tasks import TASKS, RowSource
from toolkit.tasks.loading import load_data
from toolkit.tasks.loading.columns import Wanted, resolve_columns

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """One completion: the row it answers, its total, each reward's share, and why it could not be read, if so."""

    id: str
    total: float
    explanations: tuple[Explanation, ...]
    problem: str | None


def judge_file(recipe: Recipe, file: Path) -> Iterator[Judged]:
    """The completions of a JSONL file, one after the other.

    A line has ``completion`` (text), ``truncated`` if the token limit ended it, and either the fields of a row or, as
    the predictions of an evaluation have it, the ``id`` of one of the recipe's rows.

    Raises:
        DataError: a line has no completion, or names no row.
        RecipeError: the recipe's rewards cannot be used.
    """
    table = reward_table(recipe.data.task, recipe.rewards.weights, recipe.rewards.custom, Path())
    lines = list(_read_lines(file))
    columns, missing = resolve_columns(TASKS[table.task], Wanted(recipe.data.columns), list(lines[0]) if lines else ())
    if not missing:
        samples = _rows_in_lines(recipe, file, lines, columns)
    elif all("id" in line for line in lines):
        samples = _rows_by_id(recipe, file, lines)
    else:
        rule = "lines must hold the fields of a row, or the id of one of the recipe's rows"
        raise DataError(rule, place=file, remedy=f"What is missing for a row: {'; '.join(missing)}.")
    for sample, line in zip(samples, lines, strict=True):
        yield _judge(table, sample, line)


def _read_lines(file: Path) -> Iterator[Line]:
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"this is not JSON: {error}", place=f"{file}, line {number}", value=text) from error
        if not isinstance(line, dict) or not isinstance(line.get("completion"), str):
            raise DataError('a line must be an object with a text "completion"', place=f"{file}, line {number}")
        yield line


def _rows_in_lines(recipe: Recipe, file: Path, lines: Iterable[Line], columns: Mapping[str, str]) -> Iterator[Sample]:
    source = RowSource(file, (recipe.data.image_root or file.parent).absolute(), columns)
    for number, line in enumerate(lines, start=1):
        yield TASKS[recipe.data.task].read(str(line.get("id", f"completion {number}")), line, source)


def _rows_by_id(recipe: Recipe, file: Path, lines: Iterable[Line]) -> Iterator[Sample]:
    wanted = [str(line["id"]) for line in lines]
    missing = set(wanted)
    data = load_data(recipe)
    found = {}
    for sample in (sample for split in (data.test, data.validation, data.train) for sample in split):
        if sample.id in missing:
            found[sample.id] = sample
            missing.discard(sample.id)
        if not missing:
            break
    if missing:
        rule = f"{len(missing)} ids are of no row of the recipe"
        raise DataError(rule, place=file, value=sorted(missing)[:5], remedy="Give the fields of the row in the line.")
    yield from (found[name] for name in wanted)


def _judge(table: RewardTable, sample: Sample, line: Line) -> Judged:
    answer: Answer = TASKS[table.task].parse(line["completion"], sample)
    answer = replace(answer, truncated=bool(line.get("truncated", False)))
    explanations = tuple(explain(sample, answer, table))
    return Judged(sample.id, table.score(sample, answer).total, explanations, answer.problem)
