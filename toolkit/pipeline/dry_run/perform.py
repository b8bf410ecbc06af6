"""Performing a rehearsal: what is changed is told, samples are shown, and every stage of the recipe runs."""

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
from toolkit.pipeline.dry_run.derive import rehearsal
from toolkit.pipeline.results import Results
from toolkit.pipeline.run import Stages, require_export, run_recipe
from toolkit.recipe import SPLITS, Recipe, absent, changed_keys
from toolkit.runfolder import Progress, RunFolder, no_progress
from toolkit.tasks import TASKS
from toolkit.training.rewards import reward_table

log = logging.getLogger(__name__)

SHOWN = 3
"""Training rows that are shown as the model sees them."""

NEEDED = frozenset({"rewards.custom"})
"""What is not there cannot be rehearsed without."""

Rendered = Sequence[tuple[str, str]]
"""Pairs of id and text."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A rehearsal that came to its end.

    ``lacking``: what the real run would not find, empty where it can begin; ``no_rows``: why practice data were used,
    empty where the rows were the recipe's own.
    """

    results: Results
    seconds: float
    no_rows: tuple[str, ...]
    lacking: tuple[str, ...]


def rehearse(
    recipe: Recipe,
    stages: Stages,
    *,
    show: Callable[[Rendered], None] = lambda rendered: None,
    progress: Progress = no_progress,
    notify: Callable[[int], None] = lambda number: None,
) -> Rehearsed:
    """Run ``rehearsal(recipe)`` from its beginning, in a folder of its own that the next rehearsal replaces.

    Args:
        recipe: the real one; none of its runs is touched.
        stages: who does it.
        show: gets ``SHOWN`` training rows as the tiny model sees them, with the supervised part marked.
        progress: told how far a stage has come.
        notify: told the number of the signal that asks the rehearsal to stop.

    Raises:
        RecipeError: a file of own rewards is not there, or the recipe has nothing that can be rehearsed.
        RunError: the rehearsal's folder holds a run that is none.
        ToolkitError: whatever would end a run.
    """
    begun = time.monotonic()
    no_rows, lacking = _look_for(recipe)
    no_gguf = _missing_extra(recipe)
    lacking = (*lacking, *no_gguf)
    quantised = find_spec("bitsandbytes") is not None
    derived = rehearsal(recipe, own_rows=not no_rows, gguf=not no_gguf, quantised=quantised)
    _refuse_nothing(derived)

    def prepare(wanted: Recipe, run: RunFolder, report: Progress) -> DataAndImages:
        _tell(recipe, wanted, no_rows, lacking)
        data, images = stages.prepare(wanted, run, report)
        from toolkit.models.rendered_rows import render_samples  # loads torch and transformers

        show(list(render_samples(wanted, data.train[:SHOWN], images)))
        if wanted.grpo:
            log.info("rehearsal: %s", reference_rewards(wanted, data.train))
        return data, images

    try:
        results = run_recipe(derived, replace(stages, prepare=prepare), fresh=True, progress=progress, notify=notify)
    except Interrupted as error:
        raise Interrupted(error.exit_code - 128, "The next dry run starts from the beginning", remedy="") from error
    except DataError as error:
        from toolkit.models.lengths import TOO_LONG

        if error.place != TOO_LONG:
            raise
        raise _about_the_tiny_model(error) from error
    return Rehearsed(results, time.monotonic() - begun, no_rows, lacking)


def reference_rewards(recipe: Recipe, samples: Sequence[Sample]) -> str:
    """What the reference answers themselves earn, in words: GRPO cannot ask for more than the best of them.

    Raises:
        RewardError: a reward raised, or none applies to a row.
    """
    task = TASKS[recipe.dataset.task]
    table = reward_table(task, recipe.reward_weights, recipe.rewards.custom, Path())
    scored = [table.score(sample, task.parse(task.target(sample), sample)) for sample in samples]
    means = []
    for name in table.weights:
        values = [value for one in scored if (value := one.components[name]) is not None]
        means.append(f"{name} {fmean(values):.2f}" if values else f"{name} does not apply")
    total = fmean(one.total for one in scored)
    return f"the reference answers of {len(scored)} training rows earn {total:.2f} on average ({', '.join(means)})"


def _look_for(recipe: Recipe) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Why there are no own rows, and all that the real run would not find."""
    found = absent(recipe)
    if refused := [problem for problem in found if problem.place in NEEDED]:
        raise RecipeError(refused)
    no_rows = [*filter(_is_of_the_rows, found), *_of_the_hub(recipe)]
    return tuple(map(str, no_rows)), tuple(map(str, found))


def _missing_extra(recipe: Recipe) -> tuple[str, ...]:
    """What a GGUF needs and is not installed: a rehearsal goes on without it, and says so."""
    try:
        require_export(recipe)
    except MissingExtraError as error:
        return (str(replace(error.problem, place="export.to")),)
    return ()


def _is_of_the_rows(problem: Problem) -> bool:
    """Whether what does not exist leaves the recipe without rows of its own: a file or folder of [data]."""
    return problem.place.startswith("data.")


def _of_the_hub(recipe: Recipe) -> list[Problem]:
    sources = {f"data.{split}": getattr(recipe.dataset, split) for split in SPLITS}
    rule, remedy = "a dry run does not download rows of the Hub", "Read them with `toolkit data inspect`."
    return [
        Problem("data.hub_rows_not_downloaded", rule, key, source, remedy)
        for key, source in sources.items()
        if source and source.startswith("hub:")
    ]


def _refuse_nothing(derived: Recipe) -> None:
    if not (derived.sft or derived.grpo or derived.evaluate or derived.export):
        rule = "the recipe must have a stage that a dry run can run, and it only exports an existing adapter"
        remedy = "Add [sft], [grpo] or [evaluate]."
        raise RecipeError([Problem("recipe.nothing_to_dry_run", rule, "--rehearse", remedy=remedy)])


def _tell(recipe: Recipe, derived: Recipe, no_rows: Sequence[str], lacking: Sequence[str]) -> None:
    log.info("rehearsal: the tiny model in place of %s, a few rows and steps; changed:", recipe.model.name)
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


def _about_the_tiny_model(error: DataError) -> DataError:
    """Rows that are too long are too long in the tiny model's tokens, which are many."""
    return DataError(
        "data.row_too_long_in_dry_run",
        error.rule,
        place=f"{error.place} of the dry run",
        value=error.problem.value,
        remedy="Shorten the rows, or use other rows in the dry run, such as --set data.limit_train=100. These are "
        "tokens of the tiny model, whose tokenizer needs two to three times as many as a real one.",
    )
