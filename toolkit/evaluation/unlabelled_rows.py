"""Chains that are only asked: the rows of a file in the order of their chains, without any reference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.data import Dropped, RowIndex, Tally, open_index, source_folder
from toolkit.data.agent_memory import Carried
from toolkit.data.links import FIRST, LINK, REPEATED, Link
from toolkit.data.loading.columns import RowSettings, resolve_columns
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin, Task
from toolkit.errors import DataError, ImageError, Problem, RowProblem
from toolkit.evaluation.episodes import Chain, find_chains
from toolkit.images import ImagePolicy, read_image_header
from toolkit.recipe import Recipe
from toolkit.scoring.statistics import EpisodePosition
from toolkit.tasks import TASKS


@dataclass(frozen=True, slots=True)
class OpenRows:
    """The samples of a file, in its order, and the chains they form.

    ``notes`` are warnings: rows that cannot be used, and rows after a missing step, which are skipped. ``fingerprint``
    is that of the rows.
    """

    samples: tuple[Sample, ...]
    chains: tuple[Chain, ...]
    notes: tuple[Problem, ...]
    fingerprint: str


def read_open(recipe: Recipe, file: Path, image_root: Path | None = None) -> OpenRows:
    """The rows of ``file`` (.csv, .jsonl, .json or .parquet) as questions of the recipe's task.

    Args:
        recipe: its task, column names, prompt and settings.
        file: whatever it holds of answers is not looked at.
        image_root: the folder that the screenshots' paths start from; default: the file's.

    Raises:
        DataError: the task's answers carry nothing, a column is not there, or no row can be used.
    """
    task, carried = carrying(recipe)
    index = open_index(str(file), id_column=recipe.dataset.columns.get("id"))
    origin = _origin(recipe, task, carried, index, image_root)
    links = task.link(index, origin) if task.link else None
    tally, samples = Tally(), []
    for number, (name, row) in enumerate(index):
        link = Link()
        if links is not None:
            state = REPEATED if links.previous[number] == REPEATED else FIRST
            link = Link(None, state, int(links.places[number]), int(links.lengths[number]))
        try:
            sample = carried.open_row(name, {**row, LINK: link}, origin)
            for ref in sample.images:
                read_image_header(ref, ImagePolicy.from_recipe(recipe.images))
            samples.append(sample)
        except RowProblem as problem:
            tally.add(problem.reason, name)
        except ImageError as error:
            tally.add("the screenshot cannot be opened", str(error))
    notes = [Problem("predict.steps_irregular", note, str(file)) for note in (links.notes if links else ())]
    dropped = tally.of(str(file))
    notes += [Problem("predict.rows_left_out", _left_out(one), one.source, one.count) for one in dropped]
    if not samples:
        raise DataError(
            "predict.no_usable_row",
            "at least one row must be usable",
            place=file,
            value="; ".join(map(_left_out, dropped)),
        )
    chains, behind = find_chains([carried.stand(sample) for sample in samples])
    notes += _behind(carried, [samples[number] for number in behind], str(file))
    return OpenRows(tuple(samples), tuple(chains), tuple(notes), index.fingerprint)


def _left_out(dropped: Dropped) -> str:
    return f"the number of skipped rows should be 0: {dropped.reason} (for example {'; '.join(dropped.examples)})"


def carrying(recipe: Recipe) -> tuple[Task, Carried]:
    """The recipe's task and what its answers carry.

    Raises:
        DataError: they carry nothing.
    """
    task = TASKS[recipe.dataset.task]
    if task.carried is None:
        able = ", ".join(name for name, one in TASKS.items() if one.carried)
        raise DataError(
            "predict.task_without_memory",
            f"step-by-step prediction needs a task with agent memory ({able})",
            place="[data] task",
            value=recipe.dataset.task,
        )
    return task, task.carried


def _origin(recipe: Recipe, task: Task, carried: Carried, index: RowIndex, image_root: Path | None) -> RowOrigin:
    """How the file's columns are named. Columns of the recipe that only its training rows need may be lacking."""
    there = index.columns
    named = {
        field: column
        for field, column in recipe.dataset.columns.items()
        if column in there or field in carried.open_fields
    }
    settings = task.settings(recipe, "predict")
    wanted = RowSettings(named, None, recipe.prompt.context, (), recipe.images.max_per_question, settings)
    column, problems = resolve_columns(replace(task, required=carried.open_fields), wanted, there)
    if problems:
        rule = "\n  ".join(["the columns must match the task:", *map(str, problems)])
        raise DataError("predict.columns_invalid", rule, place=index.source)
    root = (image_root or source_folder(index.source) or Path()).absolute()
    return RowOrigin(Path(index.source), root, column, context=recipe.prompt.context, settings=settings)


def _behind(carried: Carried, samples: Sequence[Sample], file: str) -> Iterator[Problem]:
    stands: list[EpisodePosition] = [carried.stand(sample) for sample in samples]
    if stands:
        example = f"{stands[0].chain}, step {stands[0].place}"
        rule = f"the number of rows after a missing step, which are skipped, should be 0 (for example task {example})"
        yield Problem("predict.rows_after_missing_step", rule, file, len(stands))
