"""How much work each stage is: optimiser steps, samples or completions a step, answers to write."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one stage. What does not apply is 0.

    ``samples`` are rows a step in SFT and prompts a step in GRPO; ``answers`` is how many the model writes in the whole
    stage, each of at most ``answer_tokens`` tokens.
    """

    steps: int = 0
    samples: int = 0
    completions: int = 0
    answers: int = 0
    answer_tokens: int = 0
    evaluations: int = 0
    """How often the held-out split is evaluated, with ``answers`` for all of them together."""


def plan_work(recipe: Recipe, rows: Mapping[str, int]) -> dict[str, Work]:
    """Stage (``sft``, ``grpo``, ``evaluate``) -> its work, for so many rows of each split.

    Steps are counted as transformers' trainer does for SFT (the last pass of an epoch may be smaller) and as TRL's
    sampler does for GRPO (an epoch leaves out what does not fill a step).
    """
    found = {}
    if recipe.sft is not None:
        passes = math.ceil(rows["train"] / recipe.sft.batch_size)
        steps = recipe.sft.max_steps or math.ceil(recipe.sft.epochs * math.ceil(passes / recipe.sft.accumulation))
        found["sft"] = Work(steps, min(recipe.sft.batch_size * recipe.sft.accumulation, rows["train"]))
    if recipe.grpo is not None:
        grpo = recipe.grpo
        steps = grpo.max_steps or math.ceil(grpo.epochs * (rows["train"] // grpo.prompts_per_step))
        completions = grpo.completions_per_step
        found["grpo"] = Work(steps, grpo.prompts_per_step, completions, steps * completions, grpo.max_completion_tokens)
    if recipe.evaluate is not None:
        found["evaluate"] = Work(
            answers=_questions(recipe, rows) * evaluations(recipe),
            answer_tokens=recipe.evaluate.max_completion_tokens,
            evaluations=evaluations(recipe),
        )
    return found


def evaluations(recipe: Recipe) -> int:
    """How often the held-out questions are asked: before training, and after each training stage."""
    trained = sum(section is not None for section in (recipe.sft, recipe.grpo))
    before = recipe.evaluate is not None and (recipe.evaluate.before or not trained)
    return before + trained


def stages(recipe: Recipe) -> list[str]:
    """The stages of a run, in their order."""
    trained = [name for name in ("sft", "grpo") if getattr(recipe, name) is not None]
    found = ["evaluate before"] if recipe.evaluate and (recipe.evaluate.before or not trained) else []
    for name in trained:
        found += [name, *(["evaluate"] if recipe.evaluate else [])]
    return [*found, *(["export"] if recipe.export else [])]


def _questions(recipe: Recipe, rows: Mapping[str, int]) -> int:
    section = recipe.evaluation
    ways = len(section.memory) if recipe.task.has_agent_memory else 1
    return ways * min(rows[section.split], section.limit or rows[section.split])
