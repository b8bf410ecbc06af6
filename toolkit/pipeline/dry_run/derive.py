"""Derive the recipe of a dry run: the tiny model, few rows, and as few other changes as possible.

Everything that determines prompts, answers, rewards and metrics is unchanged: the task and its settings, images and
coordinates, the prompt, rewards and their weights, losses, learning rates, seed, evaluation and export.
"""

from collections.abc import Mapping
from math import gcd
from typing import Any

from toolkit.pipeline.dry_run.synthetic_data import synthetic_data_changes
from toolkit.recipe import DRY_RUN_SUFFIX, Evaluate, Export, Grpo, Optimisation, Recipe, Sft
from toolkit.recipe.load import merge
from toolkit.tasks import TASKS

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
LAYERS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
"""Linear layers of the tiny language model."""

Changes = dict[str, Any]
"""Dotted key -> new value."""


def derive_dry_run(recipe: Recipe, *, own_rows: bool = True, gguf: bool = True, quantised: bool = True) -> Recipe:
    """Return the recipe of the dry run of ``recipe``. ``changed_keys`` lists the differences.

    Args:
        recipe: the recipe of the real run.
        own_rows: use some of its own rows. False: use synthetic data of its task.
        gguf: whether this machine can write GGUF. False: GGUF is left out.
        quantised: whether bitsandbytes is installed. False: 32 bits, and an optimizer without 8-bit state.

    Raises:
        RecipeError: coordinates follow the model family, and the family of the model is unknown.
    """
    task = TASKS[recipe.dataset.task]
    rows = _rows(recipe) if own_rows else synthetic_data_changes(recipe, task, ROWS)
    changed = task.dry_run(recipe, not own_rows)
    changes = {
        **_run(recipe),
        **_model(recipe, quantised=quantised),
        **rows,
        **{f"data.{task.name}.{key}": value for key, value in changed.items()},
        **_training(recipe, quantised=quantised),
        **_answers(recipe, gguf=gguf),
    }
    settings = [(tuple(key.split(".")), value) for key, value in changes.items()]
    return type(recipe).model_validate(merge(recipe.model_dump(), settings))


def _run(recipe: Recipe) -> Changes:
    return {
        "run.name": recipe.run.name[: 100 - len(DRY_RUN_SUFFIX)] + DRY_RUN_SUFFIX,
        "run.purpose": "dry_run",
        "run.report_to": (),
    }


def _model(recipe: Recipe, *, quantised: bool) -> Changes:
    model, lora = recipe.model, recipe.lora
    low, high = TOKENS
    longest = max(low, min(high, TINY_TOKENS_PER_TOKEN * model.max_tokens))
    known = tuple(name for name in lora.targets if name in LAYERS)
    return {
        "model.name": "tiny",
        "model.revision": None,
        "model.backend": "hf",
        "model.precision": model.precision if quantised and model.precision in ("4bit", "8bit") else "32bit",
        "model.adapter": None,
        "model.max_tokens": model.max_tokens if model.name == "tiny" else longest,
        "model.attention": "auto" if model.attention == "flash_attention_2" else model.attention,
        "model.trust_remote_code": False,
        "lora.targets": known or tuple(sorted(LAYERS)),
    }


def _rows(recipe: Recipe) -> Changes:
    """Return limits on the rows of each split: of files a sample drawn with the seed, of synthetic data the first."""
    data = recipe.dataset
    if data.synthetic is not None:
        return {f"data.synthetic.{split}": min(getattr(data.synthetic, split), most) for split, most in ROWS.items()}
    splits = [split for split in ROWS if getattr(data, split) or getattr(data.split, split, 0)]
    changes: Changes = {}
    if recipe.task.has_agent_memory and recipe.evaluate:
        splits.remove(recipe.evaluate.split)  # a limit would cut tasks, which are evaluated as a whole
        if recipe.images.unreadable != "skip":
            changes["images.scan"] = "header"  # because that split keeps all of its screenshots
    return changes | {f"data.limit_{split}": _least(getattr(data, f"limit_{split}"), ROWS[split]) for split in splits}


def _training(recipe: Recipe, *, quantised: bool) -> Changes:
    changes: Changes = {}
    if (sft := recipe.sft) is not None:
        changes |= {**_optimisation("sft", sft, quantised=quantised), **_sft(sft)}
    if (grpo := recipe.grpo) is not None:
        changes |= {**_optimisation("grpo", grpo, quantised=quantised), **_grpo(grpo)}
    return changes


def _optimisation(name: str, section: Optimisation, *, quantised: bool) -> Changes:
    kept = quantised or not section.optimizer.endswith("8bit")
    optimizer = section.optimizer.removeprefix("paged_") if kept else "adamw_torch"  # a CPU has no GPU memory to page
    return {f"{name}.max_steps": _least(section.max_steps, STEPS), f"{name}.optimizer": optimizer}


def _sft(sft: Sft) -> Changes:
    return {"sft.batch_size": min(sft.batch_size, 2), "sft.accumulation": min(sft.accumulation, 2)}


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
        if not (recipe.sft or recipe.grpo):
            changes["export"] = None  # the recipe would export an existing adapter, which the dry run does not load
    return changes


def _evaluate(recipe: Recipe, section: Evaluate) -> Changes:
    tokens = min(section.max_completion_tokens, COMPLETION_TOKENS)
    tasks = {"evaluate.max_tasks": _least(section.max_tasks, MAX_TASKS)} if recipe.task.has_agent_memory else {}
    return {"evaluate.max_completion_tokens": tokens, **tasks}


def _export(section: Export, *, gguf: bool) -> Changes:
    changes: Changes = {
        "export.verify": min(section.verify, 4),
        "export.allow_dequantised": False,
        "export.optional": (),
    }
    if "gguf" not in section.to:
        return changes
    if not gguf:
        return changes | {"export.to": tuple(name for name in section.to if name != "gguf") or ("merged",)}
    return changes | {"export.quant": ("f16",)}  # after a few steps, coarser quantizations change completions at random


def _least(own: int | None, most: int) -> int:
    return most if own is None else min(own, most)
