"""Repeat the training of a recipe with several seeds, and summarise the runs with intervals over the seeds.

Each seed is a run of its own, ``NAME-seed-1``, with its own folder. Data, splits, evaluated samples and bootstrap have
the recipe's ``run.seed``, so they are equal in all runs. Only ``run.training_seed`` differs.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from toolkit.errors import Problem, RecipeError, RunError
from toolkit.evaluation.results import BEFORE, Difference
from toolkit.pipeline.run_results import LABELS, RunResults
from toolkit.recipe import Recipe, for_language_models
from toolkit.runfolder import SCHEMA_VERSION, check_resumable, is_main_process, write_json, write_text
from toolkit.scoring.statistics import Estimate, t_interval

log = logging.getLogger(__name__)

MAX_SEEDS = 100
SUMMARY, TABLE = "summary.json", "summary.md"
"""Files of the summary, in the folder NAME-seeds."""
NOTE = (
    "The mean has Student's t interval (95 %) over the seeds. It covers the training, and not the choice of the "
    "samples, for which each run has intervals of its own. In parentheses: paired difference to the row above, in "
    "percentage points."
)
_COUNT, _LIST = re.compile(r"\d{1,3}"), re.compile(r"\d{1,10}(,\d{1,10})+")


@dataclass(frozen=True, slots=True)
class SeedRow:
    """One row of a table of scores, for all seeds.

    Attributes:
        label: the label of the row, such as ``after SFT``.
        values: the score with each seed, with its interval over the samples.
        mean: the mean over the seeds, with its interval. None: the row is not of a trained model, or lacks a value.
        to_above: the paired difference to the row above with each seed. Empty: there is none.
        mean_to_above: the mean of these differences, with its interval over the seeds. None: likewise.
        to_before: the paired difference to the evaluation before training with each seed. Empty: there is none.
        mean_to_before: the mean of these differences, with its interval over the seeds. None: likewise.
    """

    label: str
    values: tuple[Estimate, ...]
    mean: Estimate | None
    to_above: tuple[Difference, ...]
    mean_to_above: Estimate | None
    to_before: tuple[Difference, ...]
    mean_to_before: Estimate | None


@dataclass(frozen=True, slots=True)
class SeedsResult:
    """The results of several seeds, as summary.json has them.

    Attributes:
        schema_version: ``SCHEMA_VERSION``.
        name: the name of the recipe's run, without a seed.
        seeds: the seeds of the training.
        runs: the name of the run of each seed, in the same order. Their folders are beside that of the summary.
        split: the evaluated split.
        tables: score -> rows, with the primary score first.
        folder: the folder of the summary. It is not in summary.json.
    """

    schema_version: int
    name: str
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    split: str
    tables: Mapping[str, tuple[SeedRow, ...]]
    folder: Path


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of ``--seeds``: 1 to N for a number N, otherwise those of a list.

    >>> parse_seeds("3"), parse_seeds("7,11")
    ((1, 2, 3), (7, 11))

    Raises:
        RunError: the text is neither, or as ``check_seeds``.
    """
    compact = text.replace(" ", "")
    if _COUNT.fullmatch(compact):
        return count_seeds(int(compact))
    if not _LIST.fullmatch(compact):
        raise _seeds_error("must be a number of seeds, or a list of seeds such as 1,2,3", text)
    return check_seeds([int(part) for part in compact.split(",")])


def count_seeds(count: int) -> tuple[int, ...]:
    """Return the seeds 1 to ``count``.

    Raises:
        RunError: the number is not from 2 to ``MAX_SEEDS``.
    """
    if not 2 <= count <= MAX_SEEDS:
        raise _seeds_error(f"the number of seeds must be from 2 to {MAX_SEEDS}", count)
    return tuple(range(1, count + 1))


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return a list of seeds.

    Raises:
        RunError: a seed is repeated or out of range, or there are fewer than 2 or more than ``MAX_SEEDS``.
    """
    if not 2 <= len(seeds) <= MAX_SEEDS or len(set(seeds)) < len(seeds):
        raise _seeds_error(f"must be 2 to {MAX_SEEDS} seeds, each once", list(seeds))
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**31]:
        raise _seeds_error("a seed must be from 0 to 2147483647", wrong[0])
    return tuple(seeds)


def _seeds_error(rule: str, value: object) -> RunError:
    return RunError("run.seeds_invalid", rule, place="seeds", value=value, remedy="Write 3, or a list such as 1,2,3.")


def run_seeds(
    recipe: Recipe, seeds: Sequence[int], run: Callable[[Recipe], RunResults], *, fresh: bool = False
) -> SeedsResult:
    """Run a recipe with each seed, and summarise the results. Finished runs are skipped, an interrupted one resumes.

    Args:
        recipe: the recipe.
        seeds: the seeds of the training.
        run: runs the recipe of one seed, as ``run_recipe`` does.
        fresh: whether ``run`` starts again, so that older runs of other recipes may have the same names.

    Raises:
        RecipeError: the recipe cannot be repeated: it trains or evaluates nothing, or has a training seed.
        RunError: an older run of one of the names has another recipe, or the data changed between the runs.
        ToolkitError: a run failed. The same command resumes.
    """
    _check_repeatable(recipe)
    recipes = [seed_recipe(recipe, seed) for seed in seeds]
    folder = recipe.run.folder / f"{recipe.run.name}-seeds"
    if is_main_process():
        _check_summary_folder(folder)
        for one in recipes if not fresh else ():
            check_resumable(one)
    found = []
    for number, one in enumerate(recipes, 1):
        log.info("seed %d (%d of %d): run %s", one.run.seed_of_training, number, len(seeds), one.run.name)
        found.append(run(one))
    result = summarise_seeds(recipe, seeds, found, folder)
    if is_main_process():
        content = asdict(result)
        del content["folder"]
        write_json(folder / SUMMARY, content)
        write_text(folder / TABLE, describe(result))
    return result


def seed_recipe(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe of the run with a seed."""
    run = recipe.run.model_copy(update={"name": f"{recipe.run.name}-seed-{seed}", "training_seed": seed})
    return recipe.model_copy(update={"run": run})


def _check_repeatable(recipe: Recipe) -> None:
    for_language_models(recipe, "toolkit run --seeds")
    problems = []
    if not recipe.training:
        rule, remedy = "must have a training stage to repeat with other seeds", "Add [sft], [dpo] or [grpo]."
        problems.append(Problem("recipe.nothing_to_repeat", rule, "--seeds", remedy=remedy))
    if recipe.evaluate is None:
        rule, remedy = "must have a section [evaluate], whose scores are compared over the seeds", "Add it."
        problems.append(Problem("recipe.section_missing", rule, "evaluate", remedy=remedy))
    if recipe.run.training_seed is not None:
        rule, remedy = "must not be set with --seeds, which sets it", "Remove it."
        problems.append(
            Problem("recipe.training_seed_set", rule, "run.training_seed", recipe.run.training_seed, remedy)
        )
    longest = 100 - len("-seed-2147483647")
    if len(recipe.run.name) > longest:
        rule, remedy = f"must have at most {longest} characters with --seeds, which adds the seed", "Shorten it."
        problems.append(Problem("recipe.run_name_too_long", rule, "run.name", recipe.run.name, remedy))
    if problems:
        raise RecipeError(problems)


def _check_summary_folder(folder: Path) -> None:
    others = [file.name for file in folder.iterdir() if file.name not in (SUMMARY, TABLE)] if folder.is_dir() else []
    hidden = [name for name in others if not re.fullmatch(r"\.summary\.(json|md)\..*\.partial", name)]
    if hidden:
        rule, remedy = "the folder of the summary must have no other files", "Choose another run.name."
        raise RunError("run.folder_of_other_files", rule, place=folder, value=sorted(hidden)[:3], remedy=remedy)


def summarise_seeds(recipe: Recipe, seeds: Sequence[int], found: Sequence[RunResults], folder: Path) -> SeedsResult:
    """Return the summary of the finished runs of all seeds.

    Raises:
        RunError: the runs have different data or rewards.
    """
    first = found[0]
    for one in found:
        if one.fingerprints != first.fingerprints:
            raise RunError(
                "run.inputs_changed",
                "the runs of all seeds must have the same data and rewards",
                place=one.folder,
                value=f"other inputs than {first.name}",
                remedy="Restore the inputs, or start again with --fresh.",
            )
    trained = {LABELS[stage] for stage in recipe.training}
    tables = {
        score: tuple(_row(score, row.label, found, is_trained=row.label in trained) for row in rows)
        for score, rows in first.tables.items()
    }
    return SeedsResult(
        schema_version=SCHEMA_VERSION,
        name=recipe.run.name,
        seeds=tuple(seeds),
        runs=tuple(one.name for one in found),
        split=first.split,
        tables=tables,
        folder=folder,
    )


def _row(score: str, label: str, found: Sequence[RunResults], *, is_trained: bool) -> SeedRow:
    rows = [next(row for row in one.tables[score] if row.label == label) for one in found]
    values = [row.estimate for row in rows]
    if not is_trained:
        return SeedRow(label, tuple(values), None, (), None, (), None)
    stage = next(name for name, shown in LABELS.items() if shown == label)
    to_above = [row.to_previous for row in rows if row.to_previous is not None]
    differences = [one.evaluations[stage].scores[score].differences for one in found]
    to_before = [one[BEFORE] for one in differences if BEFORE in one]
    return SeedRow(
        label=label,
        values=tuple(values),
        mean=_mean(values),
        to_above=tuple(to_above),
        mean_to_above=_mean([one.difference for one in to_above]),
        to_before=tuple(to_before),
        mean_to_before=_mean([one.difference for one in to_before]),
    )


def _mean(values: Sequence[Estimate]) -> Estimate | None:
    known = [one.value for one in values if one.value is not None]
    return t_interval(known) if len(known) == len(values) > 0 else None


# The table, for a terminal and for summary.md.


def head(result: SeedsResult) -> tuple[str, ...]:
    """Return the columns of a table: the seeds, their mean, and the mean differences."""
    means = (f"mean of {len(result.seeds)} seeds", "mean to the row above, points", "mean to before, points")
    return ("", *(f"seed {seed}" for seed in result.seeds), *means)


def cells(row: SeedRow) -> tuple[str, ...]:
    """Return the cells of a row, in percent."""
    changes = row.to_above if len(row.to_above) == len(row.values) else (None,) * len(row.values)
    each = [
        "-" if one.value is None else f"{100 * one.value:.1f} %{_points(other)}"
        for one, other in zip(row.values, changes, strict=True)
    ]
    mean = "" if row.mean is None else _with_interval(row.mean, ".1f", " %")
    means = ["" if one is None else _with_interval(one, "+.1f", "") for one in (row.mean_to_above, row.mean_to_before)]
    return (row.label, *each, mean, *means)


def _points(found: Difference | None) -> str:
    value = None if found is None else found.difference.value
    return "" if value is None else f" ({100 * value:+.1f})"


def _with_interval(found: Estimate, spec: str, unit: str) -> str:
    low, high = found.low or 0.0, found.high or 0.0  # an interval over seeds always has both ends
    return f"{100 * (found.value or 0.0):{spec}}{unit} [{100 * low:{spec}} to {100 * high:{spec}}]"


def describe(result: SeedsResult) -> str:
    """Return the text of summary.md."""
    lines = [f"# {result.name}: {len(result.seeds)} seeds", ""]
    for score, rows in result.tables.items():
        samples = rows[0].values[0].n
        lines += [f"## {score} on the {result.split} split, {samples:,} samples", ""]
        lines += [_line(head(result)), _line(["---"] * len(head(result))), *(_line(cells(row)) for row in rows), ""]
    return "\n".join([*lines, NOTE, "", f"Runs: {', '.join(result.runs)}.", ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
