"""Losses, rewards and log-probabilities of a recipe on one backend, for tests/long/unsloth_agreement.py.

    python tests/unsloth_cpu/run.py -m tests.unsloth_cpu.agree RECIPE FILE

Both backends start from the adapter in ``model.adapter``, on the same rows with the same seed. Each call of
``generate`` seeds torch, so that GRPO samples the same tokens as long as the probabilities agree.
"""

import functools
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from toolkit.models import choose_backend, preload
from toolkit.recipe import load_recipe
from toolkit.runfolder import StopRequest, no_progress, start_run
from toolkit.tasks import TASKS


def seeded(generate: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``generate`` with torch seeded by the number of its call."""
    calls = itertools.count()

    @functools.wraps(generate)
    def call(*args: Any, **options: Any) -> Any:
        torch.manual_seed(next(calls))
        return generate(*args, **options)

    return call


def main(file: Path, out: Path) -> None:
    """Write log-probabilities of reference answers, SFT's losses, and GRPO's losses and rewards."""
    recipe = load_recipe(file, tasks=TASKS)
    with start_run(recipe) as run, StopRequest() as stop:
        preload(recipe, run.path)  # before the imports below import transformers
        from toolkit.evaluation.stage_context import Context
        from toolkit.models.backend import TrainingJob
        from toolkit.models.prompts import Prompts
        from toolkit.pipeline.prepare_data import prepare
        from toolkit.training.grpo import build_grpo, make_reward_scorer
        from toolkit.training.rewards import recipe_rewards
        from toolkit.training.sft import build_sft

        data, images = prepare(recipe, run, no_progress)
        context = Context(recipe, run, data, images, stop)
        backend, prompts, samples = choose_backend(recipe.model), Prompts.of(recipe, images), data.train
        rows = [prompts.row(sample, answer=True) for sample in samples[:4]]
        policy = backend.load(recipe, context.weights, trainable=False)
        found: dict[str, Any] = {"log_probs": backend.log_probs(policy, rows, [row.answer or "" for row in rows])}
        for stage in ("sft", "grpo"):
            scorer = make_reward_scorer(prompts.task, recipe_rewards(recipe), samples, 4) if stage == "grpo" else None
            job = TrainingJob(
                recipe, prompts.rows(samples, answer=stage == "sft"), len(samples), run.path / stage, scorer=scorer
            )
            policy = backend.load(recipe, context.weights, trainable=True)
            policy.model.generate = seeded(policy.model.generate)
            build = build_sft if stage == "sft" else build_grpo
            trainer = build(backend, policy, job)
            trainer.train()
            lines = [line for line in trainer.state.log_history if "loss" in line]
            found[stage] = [
                {name: line[name] for name in ("loss", "grad_norm", "reward") if name in line} for line in lines
            ]
    out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
