"""Small runs for tests that train: a recipe on a few synthetic X-rays, and its context as the pipeline makes it."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.helpers.recipes import load_recipe, make_recipe
from toolkit.evaluation.stage_context import Context
from toolkit.pipeline.prepare_data import prepare
from toolkit.recipe import Recipe, dump_recipe
from toolkit.runfolder import StopRequest, no_progress, start_run

Tables = Mapping[str, Mapping[str, Any]]

FEW_STEPS: Tables = {
    "lora": {"dropout": 0.0},
    "sft": {"max_steps": 2, "batch_size": 2, "accumulation": 4},
    "grpo": {"max_steps": 2, "micro_batch": 4},
}
"""Settings that tests/helpers/unsloth_contract.py trains, and that TRL alone trains for comparison."""


def small_recipe(folder: Path, tables: Tables | None = None, name: str = "small") -> Recipe:
    """Return a recipe of a few steps on 24 training and 12 test questions. ``tables`` replaces keys."""
    base: dict[str, dict[str, Any]] = {
        "run": {"name": name, "folder": folder / "runs", "checkpoint_steps": 2},
        "model": {"max_tokens": 256},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.05},
        "data": {"task": "mcq", "synthetic": {"kind": "chest", "train": 24, "test": 12, "size": 64}},
        "images": {"max_side": 112},
        "sft": {
            "learning_rate": 1e-3,
            "max_steps": 4,
            "batch_size": 4,
            "accumulation": 2,
            "gradient_checkpointing": False,
        },
        "grpo": {
            "learning_rate": 1e-3,
            "max_steps": 4,
            "prompts_per_step": 2,
            "generations": 4,
            "micro_batch": 4,
            "max_completion_tokens": 16,
            "gradient_checkpointing": False,
            "probe_prompts": 0,
        },
        "evaluate": {"batch_size": 6, "max_completion_tokens": 16, "bootstrap": 100},
    }
    for table, keys in (tables or {}).items():
        base.setdefault(table, {}).update(keys)
    file = folder / f"{name}.toml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(dump_recipe(make_recipe(base)), encoding="utf-8")
    return load_recipe(file)


def recipe_on_files(folder: Path, images: Path, tables: Tables | None = None, **off: None) -> Recipe:
    """``small_recipe`` on the rows in train.json and test.json beside their images. A section that is None is off."""
    data = {"task": "mcq", "train": str(images / "train.json"), "test": str(images / "test.json"), "image_root": images}
    data |= dict((tables or {}).get("data", {}))
    return make_recipe({**small_recipe(folder, tables).model_dump(), "data": data, **off})


@contextmanager
def context_of(recipe: Recipe) -> Iterator[Context]:
    """Yield the recipe's context, prepared as ``toolkit run`` does, with its run folder."""
    with start_run(recipe) as run, StopRequest() as stop:
        data, images = prepare(recipe, run, no_progress)
        yield Context(recipe, run, data, images, stop)


def length_reward(folder: Path) -> dict[str, Any]:
    """Return a [rewards] table with a custom reward by length, so that sampled answers differ in reward."""
    file = folder / "length.py"
    file.write_text("def length(sample, answer):\n    return min(len(answer.text), 200) / 200\n", encoding="utf-8")
    return {"custom": (f"{file}:length",)}


class StopAfter(TrainerCallback):
    """Requests a stop at a step, like a signal."""

    def __init__(self, context: Context, step: int) -> None:
        self.context, self.step = context, step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


ADAPTER = "adapter_model.safetensors"


def adapter_of(recipe: Recipe, stage: str) -> dict[str, torch.Tensor]:
    return load_file(recipe.run_folder / "stages" / stage / "weights" / ADAPTER)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def only(stage: str, folder: Path, name: str = "small", changes: dict[str, Any] | None = None) -> Recipe:
    other = {"sft": "grpo", "grpo": "sft"}[stage]
    recipe = small_recipe(folder, {"rewards": length_reward(folder), **(changes or {})}, name=name)
    return recipe.model_copy(update={other: None, "evaluate": None})
