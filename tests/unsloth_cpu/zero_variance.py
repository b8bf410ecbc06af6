"""Gradients of GRPO with and without the passes of zero-variance groups, for tests/long/unsloth_agreement.py.

    python tests/unsloth_cpu/run.py -m tests.unsloth_cpu.zero_variance RECIPE FILE

Both trainings start from the same parameters and sample the same tokens. Every second group has equal rewards.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.unsloth_cpu.agree import seeded
from toolkit.models import choose_backend, preload
from toolkit.recipe import load_recipe
from toolkit.runfolder import StopRequest, no_progress, start_run
from toolkit.tasks import TASKS


def main(file: Path, out: Path) -> None:
    """Write the largest gradient and the largest difference of gradients of each step, and the fractions left out."""
    recipe = load_recipe(file, tasks=TASKS)
    with start_run(recipe) as run, StopRequest() as stop:
        preload(recipe, run.path)  # before the imports below import transformers
        from transformers import TrainerCallback

        from toolkit.evaluation.stage_context import Context
        from toolkit.models.backend import RewardScorer, TrainingJob
        from toolkit.models.prompts import Prompts
        from toolkit.pipeline.prepare_data import prepare
        from toolkit.training.grpo import build_grpo

        class Gradients(TrainerCallback):
            def __init__(self) -> None:
                self.steps: list[dict[str, torch.Tensor]] = []

            def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
                trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
                self.steps.append({name: value.grad.clone() for name, value in trained.items()})

        def score(numbers: Any, completions: Any) -> Any:
            rewards = [0.7 if place // 4 % 2 else len(one.text) % 7 / 7 for place, one in enumerate(completions)]
            return [{"length": reward} for reward in rewards], {}

        data, images = prepare(recipe, run, no_progress)
        context = Context(recipe, run, data, images, stop)
        backend, prompts = choose_backend(recipe.model), Prompts.of(recipe, images)
        found: list[Gradients] = []
        for skip in (False, True):
            policy = backend.load(recipe, context.weights, trainable=True)
            policy.model.generate = seeded(policy.model.generate)
            found.append(Gradients())
            job = TrainingJob(
                recipe,
                prompts.rows(data.train),
                len(data.train),
                run.path / str(skip),
                callbacks=[found[-1]],
                scorer=RewardScorer({"length": 1.0}, score),
            )
            trainer = build_grpo(backend, policy, job)
            assert trainer.skip_zero_variance
            trainer.skip_zero_variance = skip
            trainer.train()
        pairs = zip(found[0].steps, found[1].steps, strict=True)
        result = {
            "largest": [max(float(value.abs().max()) for value in step.values()) for step in found[0].steps],
            "difference": [max(float((one[n] - two[n]).abs().max()) for n in one) for one, two in pairs],
            "left_out": [
                line["rows_without_advantage"] for line in trainer.state.log_history if "rows_without_advantage" in line
            ],
        }
    out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
