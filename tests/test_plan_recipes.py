"""The plans of the shipped recipes: their GPU memory on the GPUs that the README names."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.plans import codes, one_of
from tests.helpers.recipes import load_recipe
from toolkit.errors import DataError
from toolkit.planning import Gpu, described_gpu, make_plan, named_gpu
from toolkit.planning.architecture import Architecture, build_architecture
from toolkit.planning.gpu import GIB
from toolkit.planning.model_files import (
    UNQUANTIZED_MODULES,
    BaseWeights,
    find_configuration,
)
from toolkit.planning.stages import planned_backend
from toolkit.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
T4 = Gpu("Tesla T4", int(14.7 * GIB), bf16=False)
A5000 = Gpu("RTX A5000", int(23.6 * GIB), bf16=True)


def loaded(recipe: Recipe) -> Architecture:
    """Return the recipe's model as its backend quantizes it while loading."""
    found = find_configuration(recipe.model)
    assert found is not None
    return build_architecture(found.fields, UNQUANTIZED_MODULES if planned_backend(recipe) == "unsloth" else ())


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda file: file.stem)
@pytest.mark.parametrize("backend", ["auto", "hf"])
def test_every_shipped_recipe_for_a_gpu_fits_the_gpu_that_the_readme_names(file: Path, backend: Any) -> None:
    """The rows have model.max_tokens, and 5 % of the GPU memory must stay free on the planned backend."""
    from toolkit.planning.memory import estimate
    from toolkit.planning.stages import memory_settings
    from toolkit.planning.tokens import longest_possible_row

    recipe = load_recipe(file)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"backend": backend})})
    gpu = described_gpu(24 if file.stem.startswith("steps_") else 16)
    model = loaded(recipe)
    spare = 0.95 if backend == "auto" else 1.0
    for setting in memory_settings(recipe, model, longest_possible_row(recipe, model), bf16=True).values():
        assert estimate(model, setting, gpu.memory).peak.total < spare * gpu.memory


@pytest.mark.slow
def test_the_docs_table_of_memory_has_the_plans_figures_of_every_recipe() -> None:
    """The traced figures in the table are those of tests/benchmarks/bench_memory.py."""
    from toolkit.planning.memory import estimate
    from toolkit.planning.stages import memory_settings
    from toolkit.planning.tokens import longest_possible_row

    text = (ROOT / "docs" / "concepts" / "plan_estimates.md").read_text(encoding="utf-8")
    block = text.split("<!-- memory:begin -->")[1].split("<!-- memory:end -->")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in block.strip().splitlines()[2:]]
    documented = {(row[0], row[1]): float(row[6]) for row in rows}
    planned = {}
    for file in (ROOT / "recipes").glob("*.toml"):
        recipe = load_recipe(file)
        if recipe.model.name == "tiny":
            continue
        model = loaded(recipe)
        gpu = described_gpu(24 if file.stem.startswith("steps_") else 16)
        for stage, setting in memory_settings(recipe, model, longest_possible_row(recipe, model), bf16=True).items():
            if setting.trains:
                reserved = max(one.reserved for one in estimate(model, setting, gpu.memory).moments)
                planned[(file.stem, stage)] = round(reserved / GIB, 2)
    assert documented == planned


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("ham10000_grpo", 16),
        ("ham10000_sft", 16),
        ("medgemma_grpo", 16),
        ("medgemma_sft_grpo", 16),
        ("medvlm_r1", 16),
        ("nct_crc", 16),
        ("skin_stage1_sft", 16),
        ("skin_stage2_grpo", 16),
        ("steps_grpo", 24),
        ("steps_sft", 24),
        ("vqa_rad", 16),
    ],
)
def test_rows_of_max_tokens_fit_the_gpu_of_each_shipped_recipe(name: str, memory: int) -> None:
    lost = DataError("data.file_missing", "the file of rows must exist")
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    elsewhere = named_gpu("Tesla T4")  # Unsloth counts as installed on another machine.
    assert elsewhere is not None
    for gpu in (described_gpu(memory), *([T4, elsewhere] if memory == 16 else [])):
        plan = make_plan(recipe, lost, gpu, query=lambda _: BaseWeights("cache"))
        assert plan.memory is not None
        assert "plan.gpu_memory_too_small" not in codes(plan), gpu.name


def test_without_rows_memory_is_estimated_for_the_longest_possible_row(tmp_path: Path) -> None:
    lost = DataError("data.file_missing", "the file of rows must exist")
    steps = make_plan(
        load_recipe(ROOT / "recipes" / "steps_grpo.toml"), lost, A5000, query=lambda _: BaseWeights("cache")
    )
    assert steps.memory is not None
    assert not any("max_side" in str(one.changes) for one in steps.memory.values())
    recipe = load_recipe(ROOT / "recipes" / "medgemma_sft_grpo.toml")
    plan = make_plan(recipe, lost, A5000, query=lambda model: BaseWeights("reachable"))
    assert plan.data is None
    assert plan.tokens is not None
    assert (plan.tokens.rows, plan.tokens.longest.total) == (0, recipe.model.max_tokens)
    assert plan.tokens.longest.images == 256  # Gemma's
    assert plan.memory is not None
    assert {"sft", "grpo"} <= set(plan.memory)
    assert one_of(plan, "data.file_missing").place == "[data]"
