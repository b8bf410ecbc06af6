"""What of a plan's facts means that the run cannot work, or must be known before."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec

from toolkit.errors import MissingExtraError, ToolkitError
from toolkit.llamacpp import require_for
from toolkit.plan.findings import Finding, warning
from toolkit.plan.gpu import Gpu
from toolkit.plan.memory import GIB
from toolkit.plan.record import StageMemory
from toolkit.plan.tokens import Tokens
from toolkit.recipe import Recipe, absent

SHOWN = 5


def judge_rows(recipe: Recipe, rows: Mapping[str, int] | ToolkitError) -> Iterator[Finding]:
    """Rows that cannot be read, or are too few for a step."""
    if isinstance(rows, ToolkitError):
        place = rows.place or "[data]"
        yield Finding(place, str(rows).removeprefix(f"{place}: "))
    elif recipe.grpo is not None and rows["train"] < recipe.grpo.prompts_per_step:
        text = f"a step has {recipe.grpo.prompts_per_step} prompts, and there are {rows['train']} training rows"
        yield Finding("[grpo] prompts_per_step", text, "Lower it, or give more rows.")


def judge_files(recipe: Recipe, *, data: bool) -> Iterator[Finding]:
    """Files and packages that the recipe names and that are not there: a run refuses them when it loads the recipe.

    ``data``: the rows could be read; else what is wrong with them is told already, as is a model's folder.
    """
    for problem in absent(recipe):
        section, _, name = problem.place.partition(".")
        if problem.place != "model.name" and (data or section != "data"):
            yield Finding(f"[{section}] {name}", str(replace(problem, place="", remedy="")), problem.remedy)


def judge_tokens(recipe: Recipe, tokens: Tokens) -> Iterator[Finding]:
    """Rows that do not fit into model.max_tokens, in SFT with their answer, in GRPO with room for one."""
    if not tokens.rows:
        return
    place, remedy = "[model] max_tokens", "Raise model.max_tokens, lower images.max_side, or shorten the prompt."
    looked = f"of {len(tokens.lengths)} rows looked at"
    over = sum(one.total > tokens.limit for one in tokens.lengths)
    if recipe.sft is not None and over:
        named = f" ({'; '.join(tokens.too_long[:SHOWN])})" if tokens.too_long else ""
        text = f"{over} {looked} need more than {tokens.limit} tokens{named}"
        yield Finding(place, text, remedy, certain=tokens.exact)
    if recipe.grpo is not None:
        room = tokens.limit - recipe.grpo.max_completion_tokens
        over = sum(one.text + one.images > room for one in tokens.lengths)
        if over:
            text = f"{over} {looked} leave no room for grpo.max_completion_tokens in {tokens.limit} tokens"
            yield Finding(place, text, remedy, certain=tokens.exact)
    if not tokens.exact:
        text = "the model's processor is not here: text tokens are estimated from characters"
        yield warning("tokens", text, "They are counted once the model is downloaded.")


def judge_questions(recipe: Recipe, asked: Tokens) -> Iterator[Finding]:
    """Questions of the evaluation that leave no room for an answer; an evaluation after training finds them late."""
    room = asked.limit - recipe.evaluation.max_completion_tokens
    if over := sum(one.text + one.images > room for one in asked.lengths):
        text = f"{over} of {len(asked.lengths)} questions looked at leave no room for evaluate.max_completion_tokens"
        remedy = "Raise model.max_tokens, lower images.max_side, or shorten the prompt."
        certain = asked.exact and recipe.evaluation.max_tasks is None
        yield Finding("[model] max_tokens", f"{text} in {asked.limit} tokens", remedy, certain=certain)


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
            yield Finding(
                place, f'"{value}" needs bitsandbytes, which is not installed', "Install it: pip install bitsandbytes."
            )
        elif value.startswith("paged_"):
            text = f'"{value}" pages GPU memory, and there is no CUDA device here'
            yield warning(place, text, f'"{value.removeprefix("paged_")}" is used, which makes the same updates.')
        elif place == "[model] precision":
            text = f'"{value}" is slow on a CPU, and there is no CUDA device here'
            yield warning(place, text, "Run it on a machine with a GPU (`toolkit plan RECIPE --gpu 16` plans for one).")


def judge_export(recipe: Recipe) -> Iterator[Finding]:
    """A GGUF that cannot be written or asked here."""
    section = recipe.export
    if section is None or "gguf" not in section.to:
        return
    try:
        require_for(section.quant, verify=section.verify > 0)
    except MissingExtraError as error:
        yield Finding('[export] to = "gguf"', error.rule, error.remedy)


def judge_memory(memory: Mapping[str, StageMemory], gpu: Gpu | None) -> Iterator[Finding]:
    """Stages whose estimate is above what the card has, with what would make them fit."""
    for name, one in memory.items():
        if gpu is None or one.estimate.peak.total <= gpu.memory:
            continue
        peak = one.estimate.peak
        text = (
            f"about {peak.total / GIB:.1f} GiB are needed ({peak.name}), {gpu.name} offers {gpu.memory / GIB:.1f} GiB"
        )
        yield Finding(f"memory of {name}", text, describe_knobs(one.here), certain=False)


def describe_knobs(knobs: tuple[str, ...] | None) -> str:
    """What would make a stage fit, as a sentence."""
    if knobs is None:
        return "No setting that is known here makes it fit: take a smaller model or a larger card."
    return f"It would fit with {', '.join(knobs)}."
