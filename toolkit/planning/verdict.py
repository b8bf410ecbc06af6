"""What of a plan's facts means that the run cannot work, or must be known before."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec

from toolkit.errors import MissingExtraError, Problem, ToolkitError
from toolkit.models.llamacpp import require_for
from toolkit.planning.findings import Finding, from_error, warning
from toolkit.planning.gpu import Gpu
from toolkit.planning.memory import GIB
from toolkit.planning.record import StageMemory
from toolkit.planning.tokens import Tokens
from toolkit.recipe import Recipe, absent

SHOWN = 5


def judge_rows(recipe: Recipe, rows: Mapping[str, int] | ToolkitError) -> Iterator[Finding]:
    """Rows that cannot be read, or are too few for a step."""
    if isinstance(rows, ToolkitError):
        yield from_error(rows, "[data]")
    elif recipe.grpo is not None and rows["train"] < recipe.grpo.prompts_per_step:
        rule, value = f"must be at most the number of training rows ({rows['train']})", recipe.grpo.prompts_per_step
        remedy = "Lower it, or add training rows."
        yield Finding(Problem("training.too_few_prompts", rule, "[grpo] prompts_per_step", value, remedy))


def judge_files(recipe: Recipe, *, data: bool) -> Iterator[Finding]:
    """Files and packages that the recipe names and that are not there: a run refuses them when it loads the recipe.

    ``data``: the rows could be read; else what is wrong with them is told already, as is a model's folder.
    """
    for problem in absent(recipe):
        section, _, name = problem.place.partition(".")
        if problem.place != "model.name" and (data or section != "data"):
            yield Finding(replace(problem, place=f"[{section}] {name}"))


def judge_tokens(recipe: Recipe, tokens: Tokens) -> Iterator[Finding]:
    """Rows that do not fit into model.max_tokens, in SFT with their answer, in GRPO with room for one."""
    if not tokens.rows:
        return
    place, remedy = "[model] max_tokens", "Raise model.max_tokens, lower images.max_side, or shorten the prompt."
    looked = f"of {len(tokens.lengths)} rows checked"
    over = sum(one.total > tokens.limit for one in tokens.lengths)
    if recipe.sft is not None and over:
        named = f" ({'; '.join(tokens.too_long[:SHOWN])})" if tokens.too_long else ""
        rule = f"must hold every row, and {over} {looked} are longer{named}"
        yield Finding(Problem("data.row_too_long", rule, place, tokens.limit, remedy), certain=tokens.exact)
    if recipe.grpo is not None:
        room = tokens.limit - recipe.grpo.max_completion_tokens
        over = sum(one.text + one.images > room for one in tokens.lengths)
        if over:
            rule = f"must hold the prompt and grpo.max_completion_tokens, and {over} {looked} have longer prompts"
            found = Problem("plan.training_prompt_too_long", rule, place, tokens.limit, remedy)
            yield Finding(found, certain=tokens.exact)
    if not tokens.exact:
        rule = "text tokens are estimated from characters, because the model's processor is not available"
        yield warning(Problem("plan.tokens_estimated", rule, "tokens", remedy="Download the model to count them."))


def judge_questions(recipe: Recipe, asked: Tokens) -> Iterator[Finding]:
    """Questions of the evaluation that leave no room for an answer; an evaluation after training finds them late."""
    room = asked.limit - recipe.evaluation.max_completion_tokens
    if over := sum(one.text + one.images > room for one in asked.lengths):
        rule = "must hold the prompt and evaluate.max_completion_tokens, and "
        rule += f"{over} of {len(asked.lengths)} questions checked have longer prompts"
        remedy = "Raise model.max_tokens, lower images.max_side, or shorten the prompt."
        certain = asked.exact and recipe.evaluation.max_tasks is None
        found = Problem("plan.evaluation_prompt_too_long", rule, "[model] max_tokens", asked.limit, remedy)
        yield Finding(found, certain=certain)


def judge_machine(recipe: Recipe, gpu: Gpu | None) -> Iterator[Finding]:
    """What bitsandbytes computes slowly on a CPU, or cannot compute because it is not installed."""
    if gpu is not None:
        return
    wanted: dict[str, str] = {}
    if recipe.model.precision in ("4bit", "8bit"):
        wanted["[model] precision"] = recipe.model.precision
    for name, section in (("[sft]", recipe.sft), ("[grpo]", recipe.grpo)):
        if section is not None and section.optimizer.endswith("8bit"):
            wanted[f"{name} optimizer"] = section.optimizer
    installed = find_spec("bitsandbytes") is not None
    for place, value in wanted.items():
        if not installed:
            rule, remedy = "needs bitsandbytes, which is not installed", "Install it: pip install bitsandbytes."
            yield Finding(Problem("model.library_missing", rule, place, value, remedy))
        elif value.startswith("paged_"):
            rule = f'needs a CUDA device, so "{value.removeprefix("paged_")}" is used, which makes the same updates'
            yield warning(Problem("training.optimizer_not_paged", rule, place, value))
        elif place == "[model] precision":
            rule = "quantized weights are slow on a CPU, and no CUDA device is available"
            remedy = "Use a machine with a GPU. `toolkit plan RECIPE --gpu 16` plans for one."
            yield warning(Problem("model.quantised_on_cpu", rule, place, value, remedy))


def judge_export(recipe: Recipe) -> Iterator[Finding]:
    """A GGUF that cannot be written or asked here."""
    section = recipe.export
    if section is None or "gguf" not in section.to:
        return
    try:
        require_for(section.quant, verify=section.verify > 0)
    except MissingExtraError as error:
        yield Finding(replace(error.problem, place="[export] to"))


def judge_memory(memory: Mapping[str, StageMemory], gpu: Gpu | None) -> Iterator[Finding]:
    """Stages whose estimate is above what the card has, with what would make them fit."""
    for name, one in memory.items():
        if gpu is None or one.estimate.peak.total <= gpu.memory:
            continue
        peak = one.estimate.peak
        rule = f"the estimated peak in GiB ({peak.name}) must fit the {gpu.memory / GIB:.1f} GiB of {gpu.name}"
        place, value, remedy = f"memory of {name}", round(peak.total / GIB, 1), describe_knobs(one.here)
        yield Finding(Problem("plan.gpu_memory_too_small", rule, place, value, remedy), certain=False)


def describe_knobs(knobs: tuple[str, ...] | None) -> str:
    """What would make a stage fit, as a sentence."""
    if knobs is None:
        return "Use a smaller model or a larger GPU: no known setting makes the stage fit."
    return f"Set {', '.join(knobs)} to make it fit."
