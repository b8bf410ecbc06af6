"""The dry run: every stage of a recipe with the tiny model on a few rows, or on synthetic data."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import gcd
from statistics import fmean
from typing import Any

from toolkit.data.sample import Sample
from toolkit.errors import DataError, Interrupted, MissingExtraError, Problem, RecipeError, warn
from toolkit.evaluation.stage_context import DataAndImages
from toolkit.models.families import LAYERS
from toolkit.pipeline.run import Stages, require_export, run_recipe
from toolkit.pipeline.run_results import RunResults
from toolkit.recipe import (
    DRY_RUN_SUFFIX,
    SPLITS,
    Dpo,
    Evaluate,
    Export,
    Grpo,
    Optimisation,
    Recipe,
    Sft,
    changed_keys,
    missing_requirements,
)
from toolkit.recipe.load import merge
from toolkit.recipe.sections import ALL_LINEAR
from toolkit.runfolder import Progress, RunFolder, no_progress
from toolkit.tasks import TASKS, Task
from toolkit.training.rewards import recipe_rewards

log = logging.getLogger(__name__)

SHOWN_ROWS = 3
"""Training rows that are shown as the model sees them."""

REQUIRED_KEYS = frozenset({"rewards.custom", "evaluate.metrics"})
"""Keys of files that a dry run needs too."""

Rendered = Sequence[tuple[str, str]]
"""Pairs of id and text."""

ROWS: Mapping[str, int] = {"train": 16, "validation": 8, "test": 8}
"""Split -> maximum number of rows."""

MAX_TASKS = 2
"""Tasks that are evaluated if rows are GUI steps."""

STEPS = 3
"""Optimizer steps of each training stage."""

COMPLETION_TOKENS = 64
"""Maximum length of completions in GRPO and evaluation. It determines how long they take."""

TOKENS = (2048, 8192)
"""Lower and upper bound of model.max_tokens."""

TINY_TOKENS_PER_TOKEN = 4
"""Factor of model.max_tokens. The tiny tokenizer has a thousand tokens and needs two to three times as many as a real
one for a text."""

Changes = dict[str, Any]
"""Dotted key -> new value."""

SIZE = 224
"""Image width in pixels."""


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
    quantized = find_spec("bitsandbytes") is not None
    derived = derive_dry_run(recipe, own_rows=not no_rows, gguf=not no_gguf, quantized=quantized)
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
    table = recipe_rewards(recipe)
    scored = [table.score(sample, task.parse(task.target(sample), sample)) for sample in samples]
    means = []
    for name in table.weights:
        values = [value for one in scored if (value := one.components[name]) is not None]
        means.append(f"{name} {fmean(values):.2f}" if values else f"{name} does not apply")
    total = fmean(one.total for one in scored)
    return (
        f"the reference answers of {len(scored)} training rows have a mean reward of {total:.2f} ({', '.join(means)})"
    )


def derive_dry_run(recipe: Recipe, *, own_rows: bool = True, gguf: bool = True, quantized: bool = True) -> Recipe:
    """Return the recipe of the dry run of ``recipe``. ``changed_keys`` lists the differences.

    Args:
        recipe: the recipe of the real run.
        own_rows: use some of its own rows. False: use synthetic data of its task.
        gguf: whether this machine can write GGUF. False: GGUF is left out.
        quantized: whether bitsandbytes is installed. False: 32 bits, and an optimizer without 8-bit state.

    Raises:
        RecipeError: coordinates follow the model family, and the family of the model is unknown.
    """
    task = TASKS[recipe.dataset.task]
    if recipe.dpo is not None and not own_rows:
        recipe = recipe.model_copy(update={"dpo": None})  # synthetic rows have no rejected answers
    rows = limit_rows(recipe, ROWS) if own_rows else synthetic_data_changes(recipe, task, ROWS)
    changed = task.dry_run(recipe, not own_rows)
    changes = {
        **_run(recipe),
        **_model(recipe, quantized=quantized),
        **rows,
        **{f"data.{task.name}.{key}": value for key, value in changed.items()},
        **_training(recipe, quantized=quantized),
        **_answers(recipe, gguf=gguf),
    }
    settings = [(tuple(key.split(".")), value) for key, value in changes.items()]
    return type(recipe).model_validate(merge(recipe.model_dump(), settings))


def synthetic_data_changes(recipe: Recipe, task: Task, rows: Mapping[str, int]) -> dict[str, Any]:
    """Return dotted key -> value that replaces a recipe's own rows by synthetic data of its task.

    Columns that synthetic rows lack are removed. The evaluated split and those with files have rows.

    Args:
        recipe: the recipe of the real run.
        task: the task of the recipe.
        rows: split -> number of rows.

    Raises:
        RecipeError: the task has no synthetic data.
    """
    data = recipe.dataset
    if task.synthetic is None:
        rule = f"must have rows for a dry run, because the task {task.name} has no synthetic data"
        remedy = "Provide the files that the recipe names, or add synthetic data to the task."
        raise RecipeError([Problem("recipe.dry_run_without_rows", rule, "data.task", data.task, remedy)])
    columns = task.synthetic.columns
    evaluated = recipe.evaluate and recipe.evaluate.split == "validation"
    wanted = data.validation or data.split.validation or evaluated or recipe.validation
    counts = {**rows, "validation": rows["validation"] if wanted else 0}
    changes: dict[str, Any] = {
        "data.synthetic": {"kind": task.synthetic.kind, "size": SIZE, **counts},
        **dict.fromkeys(("data.train", "data.validation", "data.test", "data.image_root")),
        "data.columns": {},
        "data.filter": {},
        "data.group": data.group if data.group in columns else None,
        "prompt.context": tuple(name for name in recipe.prompt.context if name in columns),
    }
    if recipe.evaluate and recipe.evaluate.by is not None:
        known = columns | task.columns.keys()
        changes["evaluate.by"] = tuple(name for name in recipe.evaluate.by if name in known)
    return changes


def _find_missing(recipe: Recipe) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return why the recipe has no rows of its own, and everything that the real run would not find."""
    found = missing_requirements(recipe)
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
    if not (derived.training or derived.evaluate or derived.export):
        rule = "the recipe must have a stage that a dry run can run, and it only exports an existing adapter"
        remedy = "Add [sft], [dpo], [grpo] or [evaluate]."
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


def _run(recipe: Recipe) -> Changes:
    return {
        "run.name": recipe.run.name[: 100 - len(DRY_RUN_SUFFIX)] + DRY_RUN_SUFFIX,
        "run.purpose": "dry_run",
        "run.report_to": (),
        "run.tracker_examples": 0,
    }


def _model(recipe: Recipe, *, quantized: bool) -> Changes:
    model, lora = recipe.model, recipe.lora
    low, high = TOKENS
    longest = max(low, min(high, TINY_TOKENS_PER_TOKEN * model.max_tokens))
    known = ALL_LINEAR if lora.targets == ALL_LINEAR else tuple(name for name in lora.targets if name in LAYERS)
    return {
        "model.name": "tiny",
        "model.revision": None,
        "model.backend": "hf",
        "model.precision": model.precision if quantized and model.precision in ("4bit", "8bit") else "32bit",
        "model.adapter": None,
        "model.max_tokens": model.max_tokens if model.name == "tiny" else longest,
        "model.attention": "auto" if model.attention == "flash_attention_2" else model.attention,
        "model.trust_remote_code": False,
        "lora.targets": known or ALL_LINEAR,
        "prompt.thinking": False,
        "prompt.chat_template": None,
    }


def limit_rows(recipe: Recipe, rows: Mapping[str, int]) -> Changes:
    """Return limits on the rows of each split: of files a sample drawn with the seed, of synthetic data the first.

    Args:
        recipe: the recipe of the real run.
        rows: split -> maximum number of rows.
    """
    data = recipe.dataset
    if data.synthetic is not None:
        return {f"data.synthetic.{split}": min(getattr(data.synthetic, split), most) for split, most in rows.items()}
    splits = [split for split in rows if getattr(data, split) or getattr(data.split, split, 0)]
    changes: Changes = {}
    if recipe.task.has_agent_memory and recipe.evaluate:
        splits.remove(recipe.evaluate.split)  # a limit would cut tasks, which are evaluated as a whole
        if recipe.images.unreadable != "skip":
            changes["images.scan"] = "header"  # because that split keeps all of its screenshots
    return changes | {f"data.limit_{split}": _least(getattr(data, f"limit_{split}"), rows[split]) for split in splits}


def _training(recipe: Recipe, *, quantized: bool) -> Changes:
    changes: Changes = {}
    if (sft := recipe.sft) is not None:
        changes |= {**_optimisation("sft", sft, quantized=quantized), **_batches("sft", sft)}
    if (dpo := recipe.dpo) is not None:
        changes |= {**_optimisation("dpo", dpo, quantized=quantized), **_batches("dpo", dpo)}
    if (grpo := recipe.grpo) is not None:
        changes |= {**_optimisation("grpo", grpo, quantized=quantized), **_grpo(grpo)}
    if recipe.validation is not None:
        changes["validation.every_steps"] = recipe.run.log_steps
    return changes


def _optimisation(name: str, section: Optimisation, *, quantized: bool) -> Changes:
    kept = quantized or not section.optimizer.endswith("8bit")
    optimizer = section.optimizer.removeprefix("paged_") if kept else "adamw_torch"  # a CPU has no GPU memory to page
    steps = _least(section.max_steps, STEPS)
    return {
        f"{name}.max_steps": steps,
        f"{name}.warmup_steps": min(section.warmup_steps, steps),
        f"{name}.optimizer": optimizer,
    }


def _batches(name: str, section: Sft | Dpo) -> Changes:
    return {f"{name}.batch_size": min(section.batch_size, 2), f"{name}.accumulation": min(section.accumulation, 2)}


def _grpo(grpo: Grpo) -> Changes:
    prompts, generations = min(grpo.prompts_per_step, 2), min(grpo.generations, 4)
    return {
        "grpo.rollouts": "transformers",  # vLLM supports neither the tiny model nor a CPU
        "grpo.prompts_per_step": prompts,
        "grpo.generations": generations,
        "grpo.micro_batch": gcd(grpo.micro_batch, prompts * generations),
        "grpo.max_completion_tokens": min(grpo.max_completion_tokens, COMPLETION_TOKENS),
        "grpo.probe_prompts": min(grpo.probe_prompts, 2),
        "grpo.probe_on_failure": "report",
    }


def _answers(recipe: Recipe, *, gguf: bool) -> Changes:
    changes: Changes = {}
    if recipe.evaluate is not None:
        changes |= _evaluate(recipe, recipe.evaluate)
    if recipe.export is not None:
        changes |= _export(recipe.export, gguf=gguf)
        if not recipe.training:
            changes["export"] = None  # the recipe would export an existing adapter, which the dry run does not load
    return changes


def _evaluate(recipe: Recipe, section: Evaluate) -> Changes:
    tokens = min(section.max_completion_tokens, COMPLETION_TOKENS)
    tasks = {"evaluate.max_tasks": _least(section.max_tasks, MAX_TASKS)} if recipe.task.has_agent_memory else {}
    return {"evaluate.max_completion_tokens": tokens, **tasks}


def _export(section: Export, *, gguf: bool) -> Changes:
    changes: Changes = {
        "export.verify": min(section.verify, 4),
        "export.allow_dequantized": False,
        "export.optional": (),
    }
    if "gguf" not in section.to:
        return changes
    if not gguf:
        return changes | {"export.to": tuple(name for name in section.to if name != "gguf") or ("merged",)}
    return changes | {"export.quant": ("f16",)}  # after a few steps, coarser quantizations change completions at random


def _least(own: int | None, most: int) -> int:
    return most if own is None else min(own, most)
