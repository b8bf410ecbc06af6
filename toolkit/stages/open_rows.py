"""Chains that are only asked: the rows of a file in the order of their chains, without any reference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.errors import DataError, ImageError, RowProblem
from toolkit.images import ImagePolicy, look
from toolkit.metrics import Stand
from toolkit.recipe import Recipe
from toolkit.rows import RowIndex, Tally, open_index, source_folder
from toolkit.sample import Sample
from toolkit.stages.rollout import Chain, find_chains
from toolkit.tasks import TASKS
from toolkit.tasks.base import RowOrigin, Task
from toolkit.tasks.carried import Carried
from toolkit.tasks.links import FIRST, LINK, REPEATED, Link
from toolkit.tasks.loading.columns import Wanted, resolve_columns


@dataclass(frozen=True, slots=True)
class OpenRows:
    """The samples of a file, in its order, and the chains they form.

    ``notes`` are sentences for the user: what could not be used, and what stands behind a missing step and is not
    asked. ``fingerprint`` is that of the rows.
    """

    samples: tuple[Sample, ...]
    chains: tuple[Chain, ...]
    notes: tuple[str, ...]
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
    index = open_index(str(file), id_column=recipe.data.columns.get("id"))
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
                look(ref, ImagePolicy.of(recipe.images))
            samples.append(sample)
        except RowProblem as problem:
            tally.add(problem.reason, name)
        except ImageError as error:
            tally.add("the screenshot cannot be opened", str(error))
    notes = [*(links.notes if links else ()), *(f"left out: {one}" for one in tally.of(str(file)))]
    if not samples:
        raise DataError("at least one row must be one that can be asked", place=file, value="; ".join(notes))
    chains, behind = find_chains([carried.stand(sample) for sample in samples])
    notes += _behind(carried, [samples[number] for number in behind])
    return OpenRows(tuple(samples), tuple(chains), tuple(notes), index.fingerprint)


def carrying(recipe: Recipe) -> tuple[Task, Carried]:
    """The recipe's task and what its answers carry.

    Raises:
        DataError: they carry nothing.
    """
    task = TASKS[recipe.data.task]
    if task.carried is None:
        able = ", ".join(name for name, one in TASKS.items() if one.carried)
        rule = f"step after step is predicted where answers carry a memory, as those of the task {able} do"
        raise DataError(rule, place="[data] task", value=recipe.data.task)
    return task, task.carried


def _origin(recipe: Recipe, task: Task, carried: Carried, index: RowIndex, image_root: Path | None) -> RowOrigin:
    """How the file's columns are named. Columns of the recipe that only its training rows need may be lacking."""
    there = index.columns
    named = {
        field: column
        for field, column in recipe.data.columns.items()
        if column in there or field in carried.open_fields
    }
    settings = task.settings(recipe, "predict")
    wanted = Wanted(named, None, recipe.prompt.context, (), recipe.images.max_per_question, settings)
    column, problems = resolve_columns(replace(task, required=carried.open_fields), wanted, there)
    if problems:
        raise DataError("\n  ".join(["the columns do not fit:", *map(str, problems)]), place=index.source)
    root = (image_root or source_folder(index.source) or Path()).absolute()
    return RowOrigin(Path(index.source), root, column, context=recipe.prompt.context, settings=settings)


def _behind(carried: Carried, samples: Sequence[Sample]) -> Iterator[str]:
    stands: list[Stand] = [carried.stand(sample) for sample in samples]
    if stands:
        example = f"{stands[0].chain}, step {stands[0].place}"
        yield f"{len(stands):,} rows stand behind a missing step and are not asked (for example task {example})"
