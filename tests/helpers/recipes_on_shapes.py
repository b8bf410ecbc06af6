"""Train a shipped recipe for a few steps of each stage, on its model's architecture with random parameters.

Its dataset is replaced by synthetic data of the same layout. Precision, adapter, image size, batch size, completions,
optimizer and checkpointing are those of the recipe.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.recipes import load_recipe
from tests.helpers.shapes import write_model
from tests.helpers.training import context_of
from toolkit.evaluation.stage_context import Context
from toolkit.recipe import Evaluate, Export, Recipe, SyntheticData
from toolkit.runfolder import Record
from toolkit.scoring.regions.coordinates import choose_coordinates
from toolkit.tasks.mcq.synthetic import write_chest
from toolkit.training.grpo import train_grpo
from toolkit.training.results import GrpoResult, SftResult
from toolkit.training.sft import train_sft

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

SHAPE_OF: Mapping[str, str] = {
    "google/medgemma-4b-it": "medgemma_4b",
    "Qwen/Qwen2-VL-2B-Instruct": "qwen2_vl_2b",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl_3b",
    "Qwen/Qwen3-VL-8B-Instruct": "qwen3_vl_8b",
}
"""model.name of a shipped recipe -> its configuration."""

GIGABYTES: Mapping[str, int] = {
    "medgemma_4b": 16,
    "qwen2_vl_2b": 16,
    "qwen2_5_vl_3b": 16,
    "qwen2_5_vl_7b": 24,
    "qwen3_vl_8b": 24,
}
"""Configuration -> the GPU that its recipes are for."""

STEPS = 3

FULL: Mapping[str, int] = {"train": 48, "test": 8, "size": 1024}
VERIFIED = 16
"""Questions that verify an export. The rounding of bfloat16 may change a quarter of their completions."""
SMALL: Mapping[str, int] = {"train": 12, "test": VERIFIED, "size": 128}
"""Synthetic rows, and the width of their images in pixels."""

CASES = [
    *(
        (file, SHAPE_OF[name])
        for file in sorted(RECIPES.glob("*.toml"))
        if (name := load_recipe(file).model.name) in SHAPE_OF
    ),
    (RECIPES / "ham10000_sft.toml", "qwen2_5_vl_7b"),  # No recipe names the 7B model. It replaces the 3B model.
    (RECIPES / "ham10000_grpo.toml", "qwen2_5_vl_7b"),
]
"""Each recipe of a real model with its configuration."""


@dataclass(frozen=True, slots=True)
class Trained:
    """Results of the training stages, and the lines of metrics.jsonl."""

    results: Mapping[str, SftResult | GrpoResult]
    lines: Sequence[Record]


def run_some_steps(file: Path, shape: str, folder: Path, data: Path, *, small: bool, backend: str) -> Trained:
    """Write the model, and train ``STEPS`` steps of each stage of the recipe.

    ``small``: a few layers, small images and short completions in 32 bits, which only checks that the code runs.
    """
    model = folder / shape
    write_model(shape, model, data, small=small)
    recipe = on_synthetic_data(load_recipe(file), model, folder, small=small, backend=backend)
    results: dict[str, SftResult | GrpoResult] = {}
    stages: Mapping[str, Callable[[Context], SftResult | GrpoResult]] = {"sft": train_sft, "grpo": train_grpo}
    with context_of(recipe) as context:
        for name, train in stages.items():
            if getattr(recipe, name) is not None:
                results[name] = train(context)
                context.run.mark_done(name, results[name])
        return Trained(results, context.run.metrics())


def on_synthetic_data(recipe: Recipe, model: Path, folder: Path, *, small: bool, backend: str) -> Recipe:
    """Return the recipe with the model in ``model``, synthetic data, and neither evaluation nor export."""
    changes: dict[str, dict[str, Any]] = {
        "run": {"folder": folder / "runs", "checkpoint_steps": STEPS},
        "model": {"name": str(model), "adapter": None, "backend": backend},
        "data": _synthetic_data(recipe, folder, SMALL if small else FULL) | _section(recipe),
        "images": {"disk_cache": False},
    }
    stage = {"max_steps": STEPS, "warmup_steps": 0}
    changes["sft"] = dict(stage)
    changes["grpo"] = {
        **stage,
        "probe_prompts": 0,
    }  # Completions of random parameters never end, which the probe rejects.
    if small:
        changes["model"] |= {"precision": "32bit"}
        changes["images"] |= {"max_side": 112}
        cheap = {"optimizer": "adamw_torch"}
        changes["sft"] |= {"accumulation": 1, **cheap}
        changes["grpo"] |= {
            "prompts_per_step": 1,
            "generations": 2,
            "micro_batch": 2,
            "max_completion_tokens": 4,
            **cheap,
        }
    changed = {
        name: section.model_copy(update=changes[name])
        for name in changes
        if (section := getattr(recipe, name)) is not None
    }
    return recipe.model_copy(update={**changed, "evaluate": None, "export": None})


def on_synthetic_data_to_export(recipe: Recipe, model: Path, folder: Path) -> Recipe:
    """Return the recipe as ``small`` makes it, on Unsloth in its own precision, with evaluation and exports."""
    small = on_synthetic_data(recipe, model, folder, small=True, backend="unsloth")
    few = {"max_tasks": 4} if recipe.dataset.task == "steps" else {"limit": VERIFIED}
    answers = {"max_completion_tokens": 4, "batch_size": VERIFIED, "before": False, "bootstrap": 100}
    changes = {
        "model": small.model.model_copy(update={"precision": recipe.model.precision}),
        "evaluate": Evaluate.model_validate(few | answers),
        "export": Export(to=("adapter", "merged"), verify=VERIFIED),
    }
    return small.model_copy(update=changes)


def _section(recipe: Recipe) -> dict[str, Any]:
    """Return the section of the task for synthetic data.

    The coordinates are those of the recipe's model, which cannot be derived from the name of another folder. Synthetic
    lesions have the diagnoses of HAM10000, so the table of a prepared dataset is not needed.
    """
    name, section = recipe.dataset.task, recipe.settings
    if name not in ("lesion", "steps"):
        return {}
    changes: dict[str, Any] = {"labels": None} if name == "lesion" else {}
    if section.coordinates == "auto":
        changes["coordinates"] = choose_coordinates("auto", recipe.model.name).name
    return {name: section.model_copy(update=changes)}


def _synthetic_data(recipe: Recipe, folder: Path, rows: Mapping[str, int]) -> dict[str, Any]:
    none = dict.fromkeys(("train", "validation", "test", "image_root", "group")) | {"filter": {}}
    if recipe.dataset.task == "vqa":
        return {**none, **_questions(folder / "vqa", rows)}
    kind = {"mcq": "chest", "classify": "tissue", "lesion": "lesion", "steps": "steps"}[recipe.dataset.task]
    return {**none, "synthetic": SyntheticData(kind=kind, **rows), "columns": {}}


def _questions(folder: Path, rows: Mapping[str, int]) -> dict[str, Any]:
    """Write synthetic X-rays with their questions in VQA-RAD's columns."""
    written = write_chest(folder, SyntheticData(kind="chest", **rows), 0)
    for split, file in written.items():
        records = json.loads(file.read_text(encoding="utf-8"))
        table = [
            {
                "qid": number,
                "image_name": record["ImagePath"] if isinstance(record["ImagePath"], str) else record["ImagePath"][0],
                "question": record["question"],
                "answer": "yes",
                "answer_type": "CLOSED",
                "question_type": "PRES",
            }
            for number, record in enumerate(records.values())
        ]
        (folder / f"{split}_vqa.json").write_text(json.dumps(table), encoding="utf-8")
    return {
        "train": str(folder / "train_vqa.json"),
        "test": str(folder / "test_vqa.json"),
        "image_root": folder,
        "columns": {"id": "qid", "image": "image_name"},
    }
