"""Rewards tried out: given completions, scored as GRPO would score them, with the reason for each score."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.data.loading import SampleSet, read_file, synthetic_rows_file
from toolkit.data.loading.columns import resolve_columns
from toolkit.data.loading.source import row_settings
from toolkit.data.sample import Answer, Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import DataError, Problem, RowProblem
from toolkit.recipe import SPLITS, Recipe
from toolkit.tasks import TASKS
from toolkit.training.rewards import Explanation, RewardTable, explain, reward_table

MOST_TOLD = 20
"""Lines with a problem that a message lists; the others are counted."""

# Rewards never open a picture, and a row that was copied into the file has lost the folder that its paths start from.
_NO_PICTURE = "not-opened.png"


@dataclass(frozen=True, slots=True)
class ScoredCompletion:
    """One completion: the answer that was read, its total, and each reward with its reason."""

    place: str
    id: str
    answer: Answer
    total: float
    explanations: tuple[Explanation, ...]

    @property
    def problem(self) -> str | None:
        """Why no answer could be read; None: one could."""
        return self.answer.problem


@dataclass(frozen=True, slots=True)
class _Line:
    place: str
    content: Mapping[str, Any]


class LinesError(DataError):
    """Lines of a file of completions that cannot be scored. ``problems`` has one for each."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self._problems = list(problems)
        more = len(problems) - MOST_TOLD
        rest = [f"and {more:,} more"] if more > 0 else []
        shown = [f"{problem} [{problem.code}]" for problem in problems[:MOST_TOLD]]
        rule = "\n  ".join([f"{len(problems):,} lines must be corrected:", *shown, *rest])
        super().__init__("rewards.lines_invalid", rule, place=path)

    @property
    def problems(self) -> list[Problem]:
        """Return one problem for each line."""
        return list(self._problems)


def score_file(recipe: Recipe, path: Path, base: Path = Path()) -> list[ScoredCompletion]:
    """The completions of a JSONL file, in its order, scored with the recipe's rewards.

    A line holds ``completion`` and says which question it answers: by ``id`` (a row of the recipe's data; ``split`` too
    where two splits have it), by ``sample`` (the row itself), or by the row's own fields beside the completion. So the
    predictions of an evaluation can be scored as they are.

    Args:
        recipe: its task, rewards and data; its data are read only if a line names a row by its id.
        path: the file of completions.
        base: where the files of custom rewards are looked for, if their paths are relative.

    Raises:
        DataError: lines cannot be used: all of them, each with its place.
        RecipeError: a reward of the recipe does not load.
        RewardError: a reward raised, left [0, 1], or none applies to a sample.
    """
    table = reward_table(TASKS[recipe.dataset.task], recipe.reward_weights, recipe.rewards.custom, base)
    lines, problems = _read_lines(path)
    known = _find({str(line.content["id"]) for line in lines if _by_id(line)}, recipe)
    pairs: list[tuple[_Line, Sample]] = []
    for line in lines:
        try:
            pairs.append((line, _named(line, known) if _by_id(line) else _inline(line, recipe)))
        except DataError as error:
            problems.append(error.problem)
    if problems:
        raise LinesError(path, problems)
    return [_score(line, sample, table) for line, sample in pairs]


def _score(line: _Line, sample: Sample, table: RewardTable) -> ScoredCompletion:
    answer = table.task.parse(line.content["completion"], sample)
    answer = replace(answer, truncated=line.content.get("truncated") is True)
    explanations = tuple(explain(sample, answer, table))
    return ScoredCompletion(line.place, sample.id, answer, sum(one.points for one in explanations), explanations)


def _read_lines(path: Path) -> tuple[list[_Line], list[Problem]]:
    try:
        texts = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(
            "rewards.completions_unreadable", "the file must be readable", place=path, value=error.strerror
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            "rewards.completions_not_utf8", "the file must be UTF-8", place=path, value=f"byte {error.start}"
        ) from error
    lines, problems = list[_Line](), list[Problem]()
    for number, text in enumerate(texts, start=1):
        if text.strip():
            try:
                lines.append(_Line(f"line {number}", _content(text, f"line {number}")))
            except DataError as error:
                problems.append(error.problem)
    if not lines and not problems:
        raise DataError("rewards.completions_empty", "the file must have at least one completion", place=path)
    return lines, problems


def _content(text: str, place: str) -> Mapping[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError("rewards.line_not_json", "a line must be valid JSON", place=place, value=str(error)) from error
    if not isinstance(content, dict) or not isinstance(content.get("completion"), str):
        raise DataError(
            "rewards.completion_missing",
            'a line must be an object with a text "completion"',
            place=place,
            value=content,
        )
    return content


def _by_id(line: _Line) -> bool:
    return "sample" not in line.content and "id" in line.content


def _find(wanted: set[str], recipe: Recipe) -> dict[str, dict[str, Sample | RowProblem]]:
    """id -> split -> the sample, or why the row cannot be used."""
    found: dict[str, dict[str, Sample | RowProblem]] = {}
    sources = list(_sources(recipe)) if wanted else []
    others = set(SPLITS) - {split for split, _, _ in sources}
    for split, source, root in sources:
        samples = read_file(recipe, TASKS[recipe.dataset.task], source, root, split).samples
        readings = {split: samples}
        if split == "train":  # a split without a file has rows of this one, read as its own are
            settings = samples.task.settings
            readings |= {_OFF + name: samples.with_settings(settings(recipe, name)) for name in others}
        for number, (name, _) in enumerate(samples.table):
            if name in wanted:
                found.setdefault(name, {}).update({key: _read(some, number) for key, some in readings.items()})
    return found


_OFF = "split off as "


def _read(samples: SampleSet, number: int) -> Sample | RowProblem:
    try:
        return samples.read(number)
    except RowProblem as problem:
        return problem


def _sources(recipe: Recipe) -> Iterator[tuple[str, str, Path | None]]:
    """Split, source and image root; practice data are in the run's folder once it was started."""
    practice = recipe.run_folder / "phantom"
    for split in SPLITS:
        file = synthetic_rows_file(practice, split)
        if recipe.dataset.phantom is not None and file is not None:
            yield split, str(file), practice
        elif (source := getattr(recipe.dataset, split)) is not None:
            yield split, source, None


def _named(line: _Line, known: Mapping[str, Mapping[str, Sample | RowProblem]]) -> Sample:
    name, split = str(line.content["id"]), line.content.get("split")
    rows = {key: row for key, row in known.get(name, {}).items() if not key.startswith(_OFF) or key == f"{_OFF}{split}"}
    rows = {key.removeprefix(_OFF): row for key, row in rows.items() if split in (None, key.removeprefix(_OFF))}
    if not rows:
        where = "the recipe's data" if split is None else f"the split {split}"
        raise DataError(
            "rewards.id_unknown",
            f"{where} must have a row with this id",
            place=line.place,
            value=name,
            remedy=_WITHOUT_DATA,
        )
    if len(rows) > 1:
        remedy = f'Add "split": one of {", ".join(rows)}.'
        raise DataError(
            "rewards.id_ambiguous",
            "an id that is in several splits needs its split",
            place=line.place,
            value=name,
            remedy=remedy,
        )
    row = next(iter(rows.values()))
    if isinstance(row, RowProblem):
        raise DataError(
            "rewards.row_invalid", f"the row must be valid: {row.reason}", place=line.place, value=name
        ) from row
    return row


def _inline(line: _Line, recipe: Recipe) -> Sample:
    row = line.content.get("sample", {key: value for key, value in line.content.items() if key != "completion"})
    if not isinstance(row, dict):
        raise DataError(
            "rewards.sample_not_object",
            '"sample" must be an object with the fields of a row',
            place=line.place,
            value=row,
        )
    task = TASKS[recipe.dataset.task]
    column, _ = resolve_columns(task, row_settings(recipe, task), list(row))
    column.setdefault("image", "image")
    source = RowOrigin(
        Path(line.place),
        Path().absolute(),
        column,
        context=recipe.prompt.context,
        settings=task.settings(recipe, "test"),
    )
    # Nor are masks: the outlines in the row stand for one.
    absent = {column["mask"]: None} if "mask" in column else {}
    try:
        name = str(line.content.get("id", line.place))
        return task.read(name, {**row, column["image"]: _NO_PICTURE, **absent}, source)
    except RowProblem as problem:
        raise DataError(
            "rewards.row_invalid", f"the row must be valid: {problem.reason}", place=line.place, value=sorted(row)
        ) from problem


_WITHOUT_DATA = 'Correct the id, or put the row into the line as "sample".'
