"""Read rows without references for prediction, in the order of their episodes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.data import Dropped, RowIndex, Tally, open_index, source_folder
from toolkit.data.columns import RowSettings, resolve_columns
from toolkit.data.episodes import FIRST, LINK, REPEATED, Carried, Link
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin, Task
from toolkit.errors import DataError, ImageError, Problem, RowProblem
from toolkit.evaluation.episodes import Episode, find_episodes
from toolkit.images import ImagePolicy, read_image_header
from toolkit.recipe import Recipe
from toolkit.scoring.statistics import EpisodePosition
from toolkit.tasks import TASKS


@dataclass(frozen=True, slots=True)
class UnlabelledRows:
    """The samples of a file.

    Attributes:
        samples: the samples, in the order of the file.
        episodes: their episodes.
        notes: warnings about unusable rows, and about rows after a missing step, which are skipped.
        fingerprint: the fingerprint of the rows.
    """

    samples: tuple[Sample, ...]
    episodes: tuple[Episode, ...]
    notes: tuple[Problem, ...]
    fingerprint: str


def read_unlabelled(recipe: Recipe, file: Path, image_root: Path | None = None) -> UnlabelledRows:
    """Read the rows of ``file`` (.csv, .jsonl, .json or .parquet) as samples of the recipe's task.

    Args:
        recipe: defines the task, column names, prompt and settings.
        file: the rows. References in it are ignored.
        image_root: the folder of relative screenshot paths. Default: that of the file.

    Raises:
        DataError: the task has no agent memory, a column is missing, or no row is usable.
    """
    task, carried = task_with_memory(recipe)
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
            tally.add(problem.reason, name, problem.code)
        except ImageError as error:
            tally.add("the screenshot cannot be opened", str(error), "predict.screenshot_not_readable")
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
    chains, behind = find_episodes([carried.position(sample) for sample in samples])
    notes += _behind(carried, [samples[number] for number in behind], str(file))
    return UnlabelledRows(tuple(samples), tuple(chains), tuple(notes), index.fingerprint)


def _left_out(dropped: Dropped) -> str:
    return f"the number of skipped rows should be 0: {dropped.reason} (for example {'; '.join(dropped.examples)})"


def task_with_memory(recipe: Recipe) -> tuple[Task, Carried]:
    """Return the recipe's task and its agent memory.

    Raises:
        DataError: the task has no agent memory.
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
    """Return the columns of the file. Columns that only training rows need may be missing."""
    available = index.columns
    named = {
        field: column
        for field, column in recipe.dataset.columns.items()
        if column in available or field in carried.open_fields
    }
    settings = task.settings(recipe, "predict")
    wanted = RowSettings(named, None, recipe.prompt.context, (), recipe.images.max_per_question, settings)
    column, problems = resolve_columns(replace(task, required=carried.open_fields), wanted, available)
    if problems:
        rule = "\n  ".join(["the columns must match the task:", *map(str, problems)])
        raise DataError("predict.columns_invalid", rule, place=index.source)
    root = (image_root or source_folder(index.source) or Path()).absolute()
    return RowOrigin(Path(index.source), root, column, context=recipe.prompt.context, settings=settings)


def _behind(carried: Carried, samples: Sequence[Sample], file: str) -> Iterator[Problem]:
    positions: list[EpisodePosition] = [carried.position(sample) for sample in samples]
    if positions:
        example = f"{positions[0].episode}, step {positions[0].position}"
        rule = f"the number of rows after a missing step, which are skipped, should be 0 (for example task {example})"
        yield Problem("predict.rows_after_missing_step", rule, file, len(positions))
