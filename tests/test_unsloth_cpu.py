"""`toolkit run` through Unsloth's own Python on a CPU (tests/unsloth_cpu): the cases of the gate.

tests/long has the other model families, the shipped recipes, and the agreement between hf and Unsloth.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.shapes import write_model
from tests.helpers.unsloth_runs import QUESTIONS, STEPS, check_run, export_of, recipe_of
from tests.unsloth_cpu.process import figures, run_toolkit
from toolkit.recipe import Recipe, SyntheticData
from toolkit.runfolder import RunFolder
from toolkit.tasks.mcq.synthetic import write_chest
from toolkit.training.results import GrpoResult

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("unsloth") is None, reason="unsloth is not installed here"),
]


def test_gemma_3_trains_in_bfloat16_stops_at_a_signal_resumes_and_is_merged(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "unsloth", {"grpo": {"max_steps": 3}})
    checkpoint = recipe.run_folder / "stages/grpo/checkpoints/step-00000001"
    stopped = run_toolkit(recipe, "L4", stop_at=checkpoint)
    assert stopped.status == 130, stopped.output[-6000:]
    done = run_toolkit(recipe, "L4")
    check_run(recipe, done)
    assert RunFolder(recipe.run_folder).result("grpo", GrpoResult).training.resumed_from in (
        "step-00000001",
        "step-00000002",
    )
    assert (len(figures(recipe, "sft", "loss")), len(figures(recipe, "grpo", "loss"))) == (STEPS, 3)
    # The reference is the adapter after SFT: the first step begins at it. Against the base the KL would not be zero.
    first_kl, *_, last_kl = figures(recipe, "grpo", "kl")
    assert first_kl == pytest.approx(0, abs=1e-6)
    assert last_kl > 1e-6
    towers = sum("vision" in name for name in adapted_names(recipe))
    assert 0 < towers < export_of(recipe)["merged"]["compared"]["matrices"]


def adapted_names(recipe: Recipe) -> list[str]:
    from safetensors import safe_open

    file = RunFolder(recipe.run_folder).path / "stages/export/adapter/adapter_model.safetensors"
    with safe_open(file, "np") as opened:
        return [name for name in opened.keys() if "lora_A" in name]  # noqa: SIM118


def test_gemma_3_trains_in_float32_on_a_gpu_without_bfloat16(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "unsloth", {})
    done = run_toolkit(recipe, "T4")
    check_run(recipe, done)
    assert "computes in float32" in done.output


def write_pairs(folder: Path) -> dict[str, Any]:
    """A [data] table of questions with two images each: a radiograph and another one of the same split."""
    files = write_chest(folder, SyntheticData(kind="chest", train=16, test=QUESTIONS, size=64), 0)
    for file in files.values():
        rows = json.loads(file.read_text(encoding="utf-8"))
        images = sorted({row["ImagePath"][0] for row in rows.values()})
        for row in rows.values():
            own = row["ImagePath"][0]
            row["ImagePath"] = [own, images[images.index(own) - 1]]
        file.write_text(json.dumps(rows), encoding="utf-8")
    named = {split: str(file) for split, file in files.items()}
    return {"task": "mcq", "synthetic": None, "image_root": folder, **named}


def test_qwen_trains_in_bfloat16_with_two_images_per_prompt(tmp_path: Path, shared_data: Path) -> None:
    model = tmp_path / "qwen2_5_vl_3b"
    write_model("qwen2_5_vl_3b", model, shared_data, small=True)
    tables = {
        "model": {"name": str(model), "max_tokens": 400},
        "data": write_pairs(tmp_path / "pairs"),
        "images": {"max_side": 56},
    }
    recipe = recipe_of(tmp_path, "unsloth", tables)
    done = run_toolkit(recipe, "L4")
    check_run(recipe, done)
