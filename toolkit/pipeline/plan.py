"""Plan a recipe: read its rows, estimate what the run needs, and abort a run that cannot work."""

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from toolkit.errors import PlanError, Problem, ToolkitError, warn
from toolkit.recipe import SPLITS, Recipe
from toolkit.runfolder import Record, RunFolder

if TYPE_CHECKING:  # numpy and pyarrow, which the plan of an image generator does not need
    from toolkit.planning import Gpu, Plan, Rows
    from toolkit.planning.imagegen import ImagegenPlan

    AnyPlan: TypeAlias = Plan | ImagegenPlan

log = logging.getLogger(__name__)

MAX_GPU_GB = 10_000
"""Largest GPU memory that a plan accepts, in GB."""
MAX_SYNTHETIC_ROWS = 24
"""Synthetic rows per split that are generated to count tokens."""


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """A plan in plain values, which another process can return.

    Attributes:
        lines: the plan in short, for a person.
        warnings: findings that do not prevent the run.
        problems: findings that certainly prevent the run.
        record: the whole plan, as plan.json stores it.
    """

    lines: tuple[str, ...]
    warnings: tuple[Problem, ...]
    problems: tuple[Problem, ...]
    record: Record


Describe = Callable[["AnyPlan"], Iterable[str]]
"""Describes a plan in a few lines. It must be a module-level function, because another process may call it."""


def no_lines(plan: "AnyPlan") -> Iterable[str]:
    """Return no lines."""
    return ()


def plan_run(recipe: Recipe, *, fresh: bool, describe: Describe = no_lines) -> Record | None:
    """Plan a run before its first stage, log the lines of ``describe`` and warn about estimates.

    Args:
        recipe: the recipe of the run.
        fresh: whether the run starts again.
        describe: describes the plan for the log.

    Returns:
        The content of plan.json. None for a run that resumes, because it has its own plan.

    Raises:
        PlanError: the run certainly cannot work. Rows that cannot be read are left to the run, which logs them.
    """
    run = RunFolder(recipe.run_folder.absolute())
    if not fresh and run.run_file.is_file():
        log.info("plan: %s", "unchanged since the run started (plan.json)" if run.plan_file.is_file() else "not saved")
        return None
    found = _summarise_before_unsloth(recipe, describe)
    for line in found.lines:
        log.info("%s", line)
    for one in found.warnings:
        warn(one.code, one.rule, place=one.place, value=one.value, remedy=one.remedy)
    if found.problems:
        raise PlanError(found.problems)
    if "data" in (found.record.get("unknown") or ()):  # the run reports the errors of its rows
        return dict(found.record)
    return {**found.record, **_check_before_run(recipe)}


def _check_before_run(recipe: Recipe) -> Record:
    """Make the check on the real architecture. Return the entry of plan.json. Raises PlanError as ``plan_run``."""
    if recipe.imagegen is not None:
        return {}
    from toolkit.pipeline.architecture_check import check_before_run

    checked = check_before_run(recipe)
    if checked is None:
        return {}
    findings = checked.findings(recipe)
    if certain := [one.details for one in findings if one.certain]:
        raise PlanError(certain)
    for one in (finding.details for finding in findings):
        warn(one.code, one.rule, place=one.place, value=one.value, remedy=one.remedy)
    for part, reason in checked.not_tried.items():
        log.info("plan: %s on the real architecture: %s", part, reason)
    return {"architecture": checked.to_json()}


def plan_recipe(recipe: Recipe, gpu: "Gpu | None", *, deep: bool = False) -> "AnyPlan":
    """Return the plan of a recipe.

    Args:
        recipe: a recipe of either kind.
        gpu: the GPU to plan for. None: there is no GPU.
        deep: whether to make the check on the real architecture. It is for language models.
    """
    if recipe.imagegen is None:
        return plan_language_model(recipe, gpu, deep=deep)
    from toolkit.planning.imagegen import make_imagegen_plan

    with _errors_only():
        return make_imagegen_plan(recipe, gpu)


def plan_language_model(recipe: Recipe, gpu: "Gpu | None", *, deep: bool = False) -> "Plan":
    """Return the plan of a recipe without [imagegen], from its own rows or a few synthetic rows.

    Args:
        recipe: the recipe.
        gpu: the GPU to plan for. None: there is no GPU.
        deep: whether to make the check on the real architecture. False: only its cache is read.
    """
    from toolkit.planning import make_plan

    with _errors_only(), tempfile.TemporaryDirectory() as folder:
        try:
            rows: Rows | ToolkitError = _read_rows(recipe, Path(folder))
        except ToolkitError as error:  # the plan reports it beside its other findings
            rows = error
        plan = make_plan(recipe, rows, gpu)
    return _with_check(plan, recipe, deep=deep)


def _with_check(plan: "Plan", recipe: Recipe, *, deep: bool) -> "Plan":
    """Return the plan with the check on the real architecture, or why there is none."""
    from toolkit.pipeline.architecture_check import check_architecture, known_check
    from toolkit.planning.architecture_check import not_tried

    checked = known_check(recipe) if not deep else None
    if deep and plan.certain:
        checked = not_tried("the problems below come first")
    elif deep:
        checked = check_architecture(recipe)
    if checked is None:
        return plan
    return replace(
        plan,
        architecture_check=checked,
        findings=[*plan.findings, *checked.findings(recipe)],
        unknown={**plan.unknown, **checked.unknown},
    )


def parse_gpu(text: str) -> "Gpu":
    """Return the GPU with a name (``T4``) or a memory in GB (``16``).

    Raises:
        PlanError: no GPU with known figures has this name, or the memory is out of range.
    """
    from toolkit.planning import described_gpu, named_gpu
    from toolkit.planning.gpu import GPUS

    try:
        size = float(text.lower().removesuffix("gb"))
    except ValueError:
        if found := named_gpu(text):
            return found
        remedy = f"Give its memory in GB, such as 16, or one of: {', '.join(one.name for one in GPUS)}."
        problem = Problem("plan.gpu_unknown", "must be a GPU with known figures", "gpu", text, remedy)
        raise PlanError([problem]) from None
    if not 1 <= size <= MAX_GPU_GB:
        rule = f"must be from 1 to {MAX_GPU_GB:,} GB"
        raise PlanError([Problem("plan.gpu_memory_out_of_range", rule, "gpu", text, "Correct it.")])
    return described_gpu(size)


def summarise_plan(recipe: Recipe, describe: Describe) -> PlanSummary:
    """Return the summary of the plan for the GPU of this machine."""
    from toolkit.planning import find_gpu

    found = plan_recipe(recipe, find_gpu())
    certain = found.certain
    return PlanSummary(
        lines=tuple(describe(found)),
        warnings=tuple(one.details for one in found.findings if one not in certain),
        # If the rows could not be read, the run itself reads all of them and reports every error.
        problems=() if "data" in found.unknown else tuple(one.details for one in certain),
        record=found.to_json(),
    )


def _summarise_before_unsloth(recipe: Recipe, describe: Describe) -> PlanSummary:
    """Return the summary of the plan. It is made in another process if the run will import Unsloth.

    A plan imports transformers, and Unsloth must be imported before transformers.
    """
    from toolkit.models import backend_name

    if recipe.imagegen is not None or backend_name(recipe.model) == "hf":
        return summarise_plan(recipe, describe)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        return other.submit(summarise_plan, recipe, describe).result()


def _read_rows(recipe: Recipe, folder: Path) -> "Rows":
    from toolkit.pipeline.prepare_data import image_store, read_rows
    from toolkit.planning import Rows

    synthetic = recipe.dataset.synthetic
    if synthetic is None:
        data = read_rows(recipe, folder)
        return Rows(data, image_store(recipe, data), {name: len(getattr(data, name)) for name in SPLITS})
    counts = {name: getattr(synthetic, name) for name in SPLITS}
    few = synthetic.model_copy(update={name: min(count, MAX_SYNTHETIC_ROWS) for name, count in counts.items()})
    small = recipe.model_copy(update={"data": recipe.dataset.model_copy(update={"synthetic": few})})
    data = read_rows(small, folder)
    return Rows(data, image_store(small, data), counts, synthetic=True)


@contextmanager
def _errors_only() -> Iterator[None]:
    """Suppress log lines about rows: the plan has them, and the run logs them again."""
    logger = logging.getLogger("toolkit")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
