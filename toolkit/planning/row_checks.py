"""Problems of a plan with its rows: their number, their tokens, and the code and files that they need."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from toolkit.data.loading import check_validation_split
from toolkit.errors import (
    DataError,
    ModelError,
    Problem,
    ToolkitError,
    list_places,
)
from toolkit.evaluation.custom_metrics import load_metric
from toolkit.models.lengths import check_reasoning
from toolkit.models.prompts import Prompts
from toolkit.planning.facts import Check, Facts
from toolkit.planning.findings import PlanFinding, from_error, warning
from toolkit.planning.tokens import COUNTED, TEMPLATE_FAULTS, Rows, opened_block
from toolkit.recipe import missing_requirements
from toolkit.training.rewards import load_custom

MAX_SHOWN = 5
"""Rows that a problem names."""


def _check_rows(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings if the rows cannot be read or are too few for an optimizer step."""
    grpo = facts.recipe.grpo
    if isinstance(facts.rows, ToolkitError):
        yield from_error(facts.rows, "[data]")
    elif grpo is not None and (train := facts.rows.counts["train"]) < grpo.prompts_per_step:
        rule, value = f"must be at most the number of training rows ({train})", grpo.prompts_per_step
        remedy = "Lower it, or add training rows."
        yield PlanFinding(Problem("training.too_few_prompts", rule, "[grpo] prompts_per_step", value, remedy))


def _check_validation_rows(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding if the validation split cannot be used."""
    if facts.recipe.validation is None or not isinstance(facts.rows, Rows) or facts.rows.synthetic:
        return
    try:
        check_validation_split(facts.rows.data)
    except DataError as error:
        yield from_error(error, "[validation]")


def _check_counted_rows(facts: Facts) -> Iterator[PlanFinding]:
    yield from facts.row_findings


def _check_custom_code(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings for custom metrics and rewards that cannot be loaded. ``_check_files`` reports missing files."""
    recipe = facts.recipe
    for entry in recipe.evaluation.metrics:
        yield from _check_loading("[evaluate] metrics", entry, load_metric)
    for entry in recipe.rewards.custom if recipe.grpo is not None else ():
        yield from _check_loading("[rewards] custom", entry, partial(load_custom, base=Path()))


def _check_loading(place: str, entry: str, load: Callable[[str], object]) -> Iterator[PlanFinding]:
    if not Path(entry.rpartition(":")[0]).is_file():
        return
    try:
        load(entry)
    except ToolkitError as error:
        yield from_error(error, place)


def _check_files(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings for missing files and packages that the recipe names.

    If the rows cannot be read, ``_check_rows`` reports their files. ``check_base`` reports the model folder.
    """
    for problem in missing_requirements(facts.recipe):
        section, _, name = problem.place.partition(".")
        if problem.place != "model.name" and (isinstance(facts.rows, Rows) or section != "data"):
            yield PlanFinding(replace(problem, place=f"[{section}] {name}"))


def _check_tokens(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings for rows that exceed model.max_tokens: with their answer in SFT, with the completion in GRPO.

    In DPO, with the longer one of their two answers.
    """
    recipe, tokens = facts.recipe, facts.tokens
    if tokens is None or not tokens.rows:
        return
    place, remedy = "[model] max_tokens", "Raise model.max_tokens, lower images.max_side, or shorten the prompt."
    checked = f"of {len(tokens.lengths)} rows checked"
    for with_answer in [*([tokens] if recipe.sft else ()), *([facts.pairs] if facts.pairs else ())]:
        over = sum(length.total > tokens.limit for length in with_answer.lengths)
        if over:
            named = f" ({list_places(with_answer.too_long[:MAX_SHOWN])})" if with_answer.too_long else ""
            rule = f"must hold every row, and {over} {checked} are longer{named}"
            yield PlanFinding(Problem("data.row_too_long", rule, place, tokens.limit, remedy), certain=tokens.exact)
    if recipe.grpo is not None:
        available = tokens.limit - recipe.grpo.max_completion_tokens
        over = sum(length.text + length.images > available for length in tokens.lengths)
        if over:
            rule = f"must hold the prompt and grpo.max_completion_tokens, and {over} {checked} have longer prompts"
            problem = Problem("plan.training_prompt_too_long", rule, place, tokens.limit, remedy)
            yield PlanFinding(problem, certain=tokens.exact)
    if not tokens.exact:
        rule = "text tokens are estimated from characters, because the model's processor is not available"
        yield warning(Problem("plan.tokens_estimated", rule, "tokens", remedy="Download the model to count them."))


def _check_evaluation_prompts(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding for evaluation prompts that leave too few tokens for a completion."""
    recipe, evaluated = facts.recipe, facts.evaluated
    if evaluated is None:
        return
    available = evaluated.limit - recipe.evaluation.max_completion_tokens
    if over := sum(length.text + length.images > available for length in evaluated.lengths):
        rule = "must hold the prompt and evaluate.max_completion_tokens, and "
        rule += f"{over} of {len(evaluated.lengths)} rows checked have longer prompts"
        remedy = "Raise model.max_tokens, lower images.max_side, or shorten the prompt."
        certain = evaluated.exact and recipe.evaluation.max_tasks is None
        problem = Problem("plan.evaluation_prompt_too_long", rule, "[model] max_tokens", evaluated.limit, remedy)
        yield PlanFinding(problem, certain=certain)


def _check_reasoning(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding if SFT has answers without the reasoning that prompt.thinking requests."""
    recipe = facts.recipe
    if not recipe.prompt.thinking or recipe.sft is None or not isinstance(facts.rows, Rows):
        return
    train = facts.rows.data.train
    try:
        tag = opened_block(recipe)
        check_reasoning(tag, Prompts.of(recipe, facts.rows.images), train[:: max(1, -(-len(train) // COUNTED))])
    except ModelError as error:
        if error.code not in TEMPLATE_FAULTS:  # the count of tokens reports these
            yield from_error(error, "prompt.thinking")
    except ToolkitError as error:
        yield from_error(error, "prompt.thinking")


ROW_CHECKS: tuple[Check, ...] = (
    _check_rows,
    _check_validation_rows,
    _check_counted_rows,
    _check_tokens,
    _check_evaluation_prompts,
    _check_reasoning,
    _check_files,
    _check_custom_code,
)
