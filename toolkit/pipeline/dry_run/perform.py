"""Perform a dry run: log the changed keys, show samples, and run every stage of the recipe."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

from toolkit.data.sample import Sample
from toolkit.errors import DataError, Interrupted, MissingExtraError, Problem, RecipeError, warn
from toolkit.evaluation.context import DataAndImages
from toolkit.pipeline.dry_run.derive import derive_dry_run
from toolkit.pipeline.results import RunResults
from toolkit.pipeline.run import Stages, require_export, run_recipe
from toolkit.recipe import SPLITS, Recipe, absent, changed_keys
from toolkit.runfolder import Progress, RunFolder, no_progress
from toolkit.tasks import TASKS
from toolkit.training.rewards import reward_table

log = logging.getLogger(__name__)

SHOWN_ROWS = 3
"""Training rows that are shown as the model sees them."""

REQUIRED_KEYS = frozenset({"rewards.custom"})
"""Keys of files that a dry run needs too."""

Rendered = Sequence[tuple[str, str]]
"""Pairs of id and text."""


@dataclass(frozen=True, slots=True)
class DryRunResult:
    """The result of a dry run.

    Attributes:
        results: the tables of results.
        seconds: duration in seconds.
        no_rows: why synthetic data was used. Empty if the rows were the recipe's own.
        lacking: what the real run would not find. Empty if it can start.
    """

    results: RunResults
    seconds: float
    no_rows: tuple[str, ...]
    lacking: tuple[str, ...]


def dry_run(
    recipe: Recipe,
    stages: Stages,
    *,
    show: Callable[[Rendered], None] = lambda rendered: None,
    progress: Progress = no_progress,
    notify: Callable[[int], None] = lambda number: None,
) -> DryRunResult:
    """Run ``derive_dry_run(recipe)`` from the start, in its own folder, which the next dry run replaces.

    Args:
        recipe: the recipe of the real run. Its runs are not changed.
        stages: the functions that do the work.
        show: called with ``SHOWN_ROWS`` training rows as the tiny model sees them, with the supervised part marked.
        progress: called with the progress of each stage.
        notify: called with the number of the signal that requests a stop.

    Raises:
        RecipeError: a file with custom rewards is missing, or the recipe has no stage that a dry run can run.
        RunError: the folder of the dry run has a run that is not a dry run.
        ToolkitError: any error of a run.
    """
    begun = time.monotonic()
    no_rows, lacking = _find_missing(recipe)
    no_gguf = _missing_extra(recipe)
    lacking = (*lacking, *no_gguf)
    quantised = find_spec("bitsandbytes") is not None
    derived = derive_dry_run(recipe, own_rows=not no_rows, gguf=not no_gguf, quantised=quantised)
    _require_a_stage(derived)

    def prepare(derived: Recipe, run: RunFolder, report: Progress) -> DataAndImages:
        _log_changes(recipe, derived, no_rows, lacking)
        data, images = stages.prepare(derived, run, report)
        from toolkit.models.prompts import render_samples  # imports torch and transformers

        show(list(render_samples(derived, data.train[:SHOWN_ROWS], images)))
        if derived.grpo:
            log.info("dry run: %s", reference_rewards(derived, data.train))
        return data, images

    try:
        results = run_recipe(derived, replace(stages, prepare=prepare), fresh=True, progress=progress, notify=notify)
    except Interrupted as error:
        raise Interrupted(error.exit_code - 128, "The next dry run starts from the beginning", remedy="") from error
    except DataError as error:
        from toolkit.models.lengths import TOO_LONG

        if error.place != TOO_LONG:
            raise
        raise _with_tiny_remedy(error) from error
    return DryRunResult(results, time.monotonic() - begun, no_rows, lacking)


def reference_rewards(recipe: Recipe, samples: Sequence[Sample]) -> str:
    """Return the mean reward of the reference answers as text. It is the most that GRPO can reach.

    Raises:
        RewardError: a reward raised an exception, or no reward applies to a row.
    """
    task = TASKS[recipe.dataset.task]
    table = reward_table(task, recipe.reward_weights, recipe.rewards.custom, Path())
    scored = [table.score(sample, task.parse(task.target(sample), sample)) for sample in samples]
    means = []
    for name in table.weights:
        values = [value for one in scored if (value := one.components[name]) is not None]
        means.append(f"{name} {fmean(values):.2f}" if values else f"{name} does not apply")
    total = fmean(one.total for one in scored)
    return (
        f"the reference answers of {len(scored)} training rows have a mean reward of {total:.2f} ({', '.join(means)})"
    )


def _find_missing(recipe: Recipe) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return why the recipe has no rows of its own, and everything that the real run would not find."""
    found = absent(recipe)
    if required := [problem for problem in found if problem.place in REQUIRED_KEYS]:
        raise RecipeError(required)
    no_rows = [*filter(_is_about_rows, found), *_hub_rows(recipe)]
    return tuple(map(str, no_rows)), tuple(map(str, found))


def _missing_extra(recipe: Recipe) -> tuple[str, ...]:
    """Return the package that GGUF needs and that is not installed. A dry run skips GGUF with a warning."""
    try:
        require_export(recipe)
    except MissingExtraError as error:
        return (str(replace(error.problem, place="export.to")),)
    return ()


def _is_about_rows(problem: Problem) -> bool:
    """Return whether the recipe has no rows of its own without the missing file or folder, which [data] names."""
    return problem.place.startswith("data.")


def _hub_rows(recipe: Recipe) -> list[Problem]:
    sources = {f"data.{split}": getattr(recipe.dataset, split) for split in SPLITS}
    rule, remedy = "a dry run does not download rows of the Hub", "Read them with `toolkit data inspect`."
    return [
        Problem("data.hub_rows_not_downloaded", rule, key, source, remedy)
        for key, source in sources.items()
        if source and source.startswith("hub:")
    ]


def _require_a_stage(derived: Recipe) -> None:
    if not (derived.sft or derived.grpo or derived.evaluate or derived.export):
        rule = "the recipe must have a stage that a dry run can run, and it only exports an existing adapter"
        remedy = "Add [sft], [grpo] or [evaluate]."
        raise RecipeError([Problem("recipe.nothing_to_dry_run", rule, "--dry-run", remedy=remedy)])


def _log_changes(recipe: Recipe, derived: Recipe, no_rows: Sequence[str], lacking: Sequence[str]) -> None:
    log.info("dry run: the tiny model instead of %s, few rows and optimizer steps. Changed keys:", recipe.model.name)
    for key, (old, new) in changed_keys(recipe, derived).items():
        log.info("  %s: %s -> %s", key, _value(old), _value(new))
    if no_rows:
        lines = "".join(f"\n  {line}" for line in no_rows)
        warn(
            "run.dry_run_rows_synthetic",
            f"the dry run uses synthetic data instead of the recipe's rows:{lines}",
            place="[data]",
        )
    for line in lacking:
        if line not in no_rows:
            warn("run.would_not_start", f"the real run would not start: {line}")


def _value(value: object) -> str:
    return "not set" if value is None else str(value)


def _with_tiny_remedy(error: DataError) -> DataError:
    """Return the error of a row that is too long, with a remedy for the tiny model's tokenizer."""
    return DataError(
        "data.row_too_long_in_dry_run",
        error.rule,
        place=f"{error.place} of the dry run",
        value=error.problem.value,
        remedy="Shorten the rows, or use other rows in the dry run, such as --set data.limit_train=100. These are "
        "tokens of the tiny model, whose tokenizer needs two to three times as many as a real one.",
    )
