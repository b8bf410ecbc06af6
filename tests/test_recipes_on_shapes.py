"""Every recipe of a real model trains on a CPU, on a few layers of its architecture (see tests/gpu/test_recipes.py)."""

import math
from pathlib import Path

import pytest

from tests.helpers.recipes import load_recipe
from tests.helpers.recipes_on_shapes import CASES, GIGABYTES, RECIPES, SHAPE_OF, STEPS, run_some_steps


@pytest.mark.slow
@pytest.mark.parametrize(("file", "shape"), CASES, ids=[f"{file.stem}-{shape}" for file, shape in CASES])
def test_a_recipe_trains_on_its_architecture(tmp_path: Path, shared_data: Path, file: Path, shape: str) -> None:
    found = run_some_steps(file, shape, tmp_path, shared_data, small=True, backend="hf")
    recipe = load_recipe(file)
    trained = [name for name in ("sft", "grpo") if getattr(recipe, name) is not None]
    assert {name: result.training.steps for name, result in found.results.items()} == dict.fromkeys(trained, STEPS)
    losses = [line["loss"] for line in found.lines if "loss" in line]
    assert len(losses) == STEPS * len(trained)
    assert all(math.isfinite(loss) for loss in losses)


def test_every_recipe_of_a_real_model_has_its_architecture() -> None:
    named = {load_recipe(file).model.name for file in RECIPES.glob("*.toml")} - {"tiny"}
    assert named == set(SHAPE_OF)
    assert {shape for _, shape in CASES} == set(GIGABYTES)
