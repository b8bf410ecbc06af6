"""Runs of the toolkit with Unsloth on the simulated GPU."""

import json
from pathlib import Path
from typing import Any

from tests.helpers.exports import export_of, merged_of, verified
from tests.helpers.training import Tables, length_reward, small_recipe
from tests.unsloth_cpu.process import Done
from tests.unsloth_cpu.substitutes import SUBSTITUTES
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder
from toolkit.training.results import GrpoResult, SftResult

STEPS = 2


QUESTIONS = 16
"""Questions that verify an export. Up to a quarter may change by the rounding of bfloat16. Here it is one of 16."""


def recipe_of(folder: Path, backend: str, tables: Tables) -> Recipe:
    """SFT, GRPO with a KL term, evaluation and a verified merge, of two steps each."""
    few: dict[str, dict[str, Any]] = {
        "run": {"checkpoint_steps": 1, "log_steps": 1},
        "model": {"backend": backend, "precision": "4bit"},
        "lora": {"dropout": 0.0, "vision": True},
        "data": {"synthetic": {"kind": "chest", "train": 16, "test": QUESTIONS, "size": 64}},
        "sft": {"max_steps": STEPS, "batch_size": 2, "accumulation": 2},
        "grpo": {"max_steps": STEPS, "max_completion_tokens": 8, "beta": 0.04},
        "evaluate": {"batch_size": QUESTIONS, "max_completion_tokens": 4, "before": False},
        "export": {"to": ("adapter", "merged"), "verify": QUESTIONS},
        "rewards": length_reward(folder),
    }
    for table, keys in tables.items():
        few.setdefault(table, {}).update(keys)
    return small_recipe(folder, few, name=backend)


def check_run(recipe: Recipe, done: Done) -> None:
    """The run finished, every adapted matrix was compared, and the essential substitutes were called."""
    assert done.status == 0, done.output[-6000:]
    run = RunFolder(recipe.run_folder)
    assert (run.result("sft", SftResult).backend, run.result("grpo", GrpoResult).backend) == ("unsloth", "unsloth")
    adapter = json.loads((run.path / "stages/export/adapter/adapter_config.json").read_text())
    assert adapter["r"] == recipe.lora.r
    merged = merged_of(export_of(run))
    assert merged.merge is not None
    assert merged.merge.matrices > 0
    assert verified(merged).samples == QUESTIONS
    assert set(done.counts) == {one.name for one in SUBSTITUTES}
    assert [one.name for one in SUBSTITUTES if one.essential and not done.counts[one.name]] == []
