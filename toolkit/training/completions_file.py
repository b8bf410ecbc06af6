"""Scores of the completions in a file, as GRPO would compute them, with the reason for each.

``toolkit reward test`` prints them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.data.columns import resolve_columns
from toolkit.data.json_stream import KeyRepeated, checked_object
from toolkit.data.loading import load_data, synthetic_rows_file
from toolkit.data.row_counts import CORRECT
from toolkit.data.rows import UsableRows, read_alike, read_file, row_settings
from toolkit.data.sample import Answer, Sample
from toolkit.data.sample_set import SampleSet
from toolkit.data.split_sources import recipe_sources
from toolkit.data.task import RowOrigin
from toolkit.errors import NOTHING, DataError, Problem, RowProblem, list_problems
from toolkit.identifiers import described
from toolkit.recipe import SPLITS, Recipe
from toolkit.scoring.regions import XYXY
from toolkit.tasks import TASKS
from toolkit.training.rewards import Explanation, RewardTable, explain, recipe_rewards

MAX_SHOWN = 10
"""Number of invalid lines that a message lists. The others are counted."""

MAX_DEPTH = 64
"""Maximum number of lists and objects inside each other in a line. Rows use about six."""

# Rewards never open an image. A row that was copied into the file no longer has the folder of its relative paths.
_UNOPENED_IMAGE = "not-opened.png"


@dataclass(frozen=True, slots=True)
class ScoredCompletion:
    """One completion: its parsed answer, its total score, and each reward with its reason."""

    place: str
    id: str
    answer: Answer
    total: float
    explanations: tuple[Explanation, ...]

    @property
    def problem(self) -> str | None:
        """Return the reason why no answer could be parsed, or None."""
        return self.answer.problem


@dataclass(frozen=True, slots=True)
class _Line:
    place: str
    content: Mapping[str, Any]


class LinesError(DataError):
    """Lines of a completions file cannot be scored. ``problems`` has one entry for each."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self._problems = list(problems)
        more = len(problems) - MAX_SHOWN
        rest = f"  and {more:,} more\n" if more > 0 else ""
        count = f"{len(problems):,} line{'s' * (len(problems) != 1)}"
        rule = f"{count} must be corrected:\n{list_problems(problems[:MAX_SHOWN])}{rest}"
        super().__init__("rewards.lines_invalid", rule, place=path, remedy=CORRECT_LINES)

    @property
    def problems(self) -> list[Problem]:
        """Return one problem for each line."""
        return list(self._problems)


def score_file(recipe: Recipe, path: Path, base: Path = Path()) -> list[ScoredCompletion]:
    """Score the completions of a JSONL file with the recipe's rewards, in the order of the file.

    A line has ``completion`` and identifies its question: by ``id`` (a row of the recipe's data, with ``split`` if two
    splits have it), by ``sample`` (the row itself), or by the row's fields beside the completion. The predictions of an
    evaluation can be scored without changes.

    Args:
        recipe: Its task, rewards and data are used. The data are read only if a line has an ``id``, or if they decide
            settings of the task.
        path: The completions file.
        base: The folder that relative paths of custom rewards start from.

    Raises:
        DataError: Lines cannot be used. The error lists all of them with their places.
        RecipeError: A reward of the recipe does not load.
        RewardError: A reward raised an exception or left [0, 1], or none applies to a sample.
    """
    table = recipe_rewards(recipe, base)
    lines, problems = _read_lines(path)
    found = _found_settings(recipe)
    known = _find({str(line.content["id"]) for line in lines if _by_id(line)}, recipe, found)
    pairs: list[tuple[_Line, Sample]] = []
    for line in lines:
        try:
            pairs.append((line, _named(line, known) if _by_id(line) else _inline(line, recipe, found)))
        except DataError as error:
            problems.append(error.problem)
    if problems:
        raise LinesError(path, problems)
    return [_score(line, sample, table) for line, sample in pairs]


def _score(line: _Line, sample: Sample, table: RewardTable) -> ScoredCompletion:
    answer = table.task.parse(line.content["completion"], sample)
    answer = replace(answer, truncated=line.content.get("truncated") is True)
    explanations = tuple(explain(sample, answer, table))
    return ScoredCompletion(
        line.place, sample.id, answer, sum(explanation.points for explanation in explanations), explanations
    )


def _read_lines(path: Path) -> tuple[list[_Line], list[Problem]]:
    texts = _read_text(path).split("\n")
    lines, problems = list[_Line](), list[Problem]()
    for number, text in enumerate(texts, start=1):
        if text.strip():
            try:
                lines.append(_Line(f"line {number}", _content(text, f"line {number}")))
            except DataError as error:
                problems.append(error.problem)
    if not lines and not problems:
        remedy = 'Write one JSON object with "completion" and "id" on each line.'
        rule = "the file must have at least one completion"
        raise DataError("rewards.completions_empty", rule, place=path, remedy=remedy)
    return lines, problems


def _read_text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device would wait, or never end
            rule, remedy = "must be a regular file", "Correct the path, or write the completions to a file."
            raise DataError("rewards.completions_not_a_file", rule, place=path, remedy=remedy)
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        rule, remedy, value = "the file must be readable", "Correct the path or its permissions.", error.strerror
        raise DataError("rewards.completions_unreadable", rule, place=path, value=value, remedy=remedy) from error
    except UnicodeDecodeError as error:
        rule, remedy, value = "the file must be UTF-8", "Save it as UTF-8.", f"byte {error.start}"
        raise DataError("rewards.completions_not_utf8", rule, place=path, value=value, remedy=remedy) from error
    except ValueError as error:  # a NUL character in the path
        rule, remedy = "the path must be valid", "Correct the path."
        raise DataError("rewards.completions_unreadable", rule, place=path, value=str(error), remedy=remedy) from error


def _content(text: str, place: str) -> Mapping[str, Any]:
    try:
        content = json.loads(text, object_pairs_hook=checked_object)
    except RecursionError:
        raise _nested_too_deeply(place) from None
    except KeyRepeated as error:
        rule, remedy = "a line must have each key once", "Remove one of them."
        raise DataError("rewards.key_repeated", rule, place=place, value=str(error), remedy=remedy) from None
    except ValueError as error:  # includes integers of more than 4,300 digits, whose text names a Python function
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "an integer is too long"
        rule = "a line must be valid JSON"
        raise DataError("rewards.line_not_json", rule, place=place, value=reason, remedy="Correct the line.") from error
    if _is_deep(content):
        raise _nested_too_deeply(place)
    if not isinstance(content, dict) or not isinstance(content.get("completion"), str):
        rule = 'a line must be an object with a text "completion"'
        remedy = 'Write it as {"id": "row-1", "completion": "…"}.'
        raise DataError("rewards.completion_missing", rule, place=place, value=described(content), remedy=remedy)
    return content


def _nested_too_deeply(place: str) -> DataError:
    rule = f"a line must have at most {MAX_DEPTH} lists and objects inside each other"
    return DataError("rewards.line_nested_too_deeply", rule, place=place, remedy="Remove the inner lists or objects.")


def _is_deep(value: Any) -> bool:
    """Return whether a JSON value has more than ``MAX_DEPTH`` lists and objects inside each other."""
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, list | dict)]:
        depth += 1
        if depth > MAX_DEPTH:
            return True
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return False


def _by_id(line: _Line) -> bool:
    return "sample" not in line.content and "id" in line.content


def _found_settings(recipe: Recipe) -> Mapping[str, Any]:
    """Return the settings of the task that its rows decide. Empty: each row can be read without them.

    Raises:
        DataError: Rows need these settings, and the recipe's rows cannot be read.
    """
    task = TASKS[recipe.dataset.task]
    if task.from_rows is None:
        return {}
    try:
        return load_data(recipe, task, recipe.run_folder / "synthetic" if recipe.dataset.synthetic else None).found
    except DataError:
        if task.from_rows.needed:
            raise
        return {}


def _find(
    wanted: set[str], recipe: Recipe, found_settings: Mapping[str, Any]
) -> dict[str, dict[str, Sample | RowProblem]]:
    """Return a mapping from id and split to the sample, or to the reason why the row cannot be used."""
    found: dict[str, dict[str, Sample | RowProblem]] = {}
    sources = {split: (source, root) for split, source, root in _sources(recipe)} if wanted else {}
    others = set(SPLITS) - sources.keys()

    def read(split: str, whole: tuple[str, ...]) -> UsableRows:
        return read_file(recipe, TASKS[recipe.dataset.task], *sources[split], split, whole)

    for split, rows in read_alike({split: read(split, ()) for split in sources}, read).items():
        samples = rows.samples
        settings = samples.task.settings_of
        readings = {split: samples.with_settings(settings(recipe, split, found_settings))}
        if split == "train":  # a split without a file takes rows of this file, read with its own settings
            of_other = {name: settings(recipe, name, found_settings) for name in others}
            readings |= {_OFF + name: samples.with_settings(one) for name, one in of_other.items()}
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
    """Yield split, source and image root. Synthetic data are in the run folder after the first start."""
    synthetic = recipe.run_folder / "synthetic"
    sources, _ = recipe_sources(recipe)
    for split in SPLITS:
        file = synthetic_rows_file(synthetic, split)
        if recipe.dataset.synthetic is not None and file is not None:
            yield split, str(file), synthetic
        elif split in sources:
            yield split, sources[split], None


def _named(line: _Line, known: Mapping[str, Mapping[str, Sample | RowProblem]]) -> Sample:
    name, split = str(line.content["id"]), line.content.get("split")
    rows = {key: row for key, row in known.get(name, {}).items() if not key.startswith(_OFF) or key == f"{_OFF}{split}"}
    rows = {key.removeprefix(_OFF): row for key, row in rows.items() if split in (None, key.removeprefix(_OFF))}
    if split is not None and split not in SPLITS:
        rule, remedy = f'"split" must be one of {", ".join(SPLITS)}', "Correct it, or remove it."
        raise DataError("rewards.split_unknown", rule, place=line.place, value=split, remedy=remedy)
    if not rows:
        where = "the recipe's data" if split is None else f"the split {split}"
        raise DataError(
            "rewards.id_unknown",
            f"{where} must have a row with this id",
            place=line.place,
            value=described(name),
            remedy=_WITHOUT_DATA,
        )
    if len(rows) > 1:
        remedy = f'Add "split": one of {", ".join(rows)}.'
        raise DataError(
            "rewards.id_ambiguous",
            "an id that is in several splits needs its split",
            place=line.place,
            value=described(name),
            remedy=remedy,
        )
    row = next(iter(rows.values()))
    if isinstance(row, RowProblem):
        raise _invalid(row, line, described(name)) from row
    return row


def _inline(line: _Line, recipe: Recipe, found: Mapping[str, Any]) -> Sample:
    row = line.content.get("sample", {key: value for key, value in line.content.items() if key != "completion"})
    if not isinstance(row, dict):
        raise DataError(
            "rewards.sample_not_object",
            '"sample" must be an object with the fields of a row',
            place=line.place,
            value=described(row),
            remedy="Copy the row from the data file.",
        )
    task = TASKS[recipe.dataset.task]
    requested = row_settings(recipe, task)
    column, _ = resolve_columns(task, requested, list(row))
    column.setdefault("image", "image")
    source = RowOrigin(
        Path(line.place),
        Path().absolute(),
        column,
        context=recipe.prompt.context,
        settings=task.settings_of(recipe, "test", found),
        boxes=requested.boxes or XYXY,
    )
    # Masks are not opened either. The outlines in the row replace them.
    absent = {column["mask"]: None} if "mask" in column else {}
    try:
        name = str(line.content.get("id", line.place))
        sample = task.read(name, {**row, column["image"]: _UNOPENED_IMAGE, **absent}, source)
        return replace(sample, place=line.place)
    except RowProblem as problem:
        raise _invalid(problem, line, sorted(row)) from problem


def _invalid(problem: RowProblem, line: _Line, shown: object) -> DataError:
    """Return the error of a row that cannot be used. ``shown`` is its value if the problem has none."""
    rule = f"the row must be valid: {problem.reason}"
    value = shown if problem.problem.value is NOTHING else problem.problem.value
    return DataError("rewards.row_invalid", rule, place=line.place, value=value, remedy=problem.remedy or CORRECT)


_WITHOUT_DATA = 'Correct the id, or put the row into the line as "sample".'
CORRECT_LINES = "Correct these lines."
