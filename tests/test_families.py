"""Other model families run from training to export: a few layers of Qwen2.5-VL and Qwen3-VL, with real processors."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.exports import export_of, merged_of, verified
from tests.helpers.model_families import build
from tests.helpers.training import Tables, small_recipe
from toolkit.data.task import Decision
from toolkit.models.backend import Row
from toolkit.models.hf import HfBackend
from toolkit.models.messages import conversation
from toolkit.pipeline import run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.runfolder import find_run, read_json


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_log_probabilities_of_options_are_those_of_whole_answers(
    family: str, shared_data: Path, tmp_path: Path
) -> None:
    """The two images have equally many tokens, but their positions differ."""
    recipe = small_recipe(tmp_path, {"model": {"name": str(build(family, shared_data, tmp_path))}})
    backend, rng = HfBackend(), np.random.default_rng(0)
    policy = backend.load(recipe, None, trainable=False)
    sizes = ((112, 56), (56, 112))
    images = [Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)) for size in sizes]
    rows = [Row(conversation("Which tissue?", 1), [image]) for image in images]
    names = {"a": "adipose", "b": "smooth muscle", "c": "mucus"}
    found = backend.choice_log_probs(policy, rows, [[Decision(names, ends=True)]] * len(rows))
    for row, (values,) in zip(rows, found, strict=True):
        whole = backend.log_probs(policy, [row] * len(names), list(names.values()))
        assert list(values.values()) == pytest.approx([sum(tokens) for tokens in whole], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_family_trains_and_exports(family: str, shared_data: Path, tmp_path: Path) -> None:
    tables: Tables = {
        "model": {"name": str(build(family, shared_data, tmp_path)), "max_tokens": 600},
        "images": {"max_side": 56},
        "sft": {"max_steps": 1, "batch_size": 4, "accumulation": 1},
        # One pass of two prompts of different length: rows padded on different sides would not fit together.
        "grpo": {"max_steps": 1, "prompts_per_step": 2, "generations": 2, "micro_batch": 4, "max_completion_tokens": 4},
        "evaluate": {"limit": 2, "max_completion_tokens": 4, "before": False},
        "export": {"to": ["merged"], "verify": 2},
    }
    recipe = small_recipe(tmp_path, tables)
    run_recipe(recipe, STAGES)
    run = find_run(recipe.run_folder)
    assert verified(merged_of(export_of(run))).differing == 0
    merged = run.path / "stages/export/merged"
    assert read_json(merged / "tokenizer_config.json")["eos_token"] == "<|im_end|>"
    assert 151645 in read_json(merged / "generation_config.json")["eos_token_id"]
    # The server's limit of pixels is that of images of 56 x 56, which some families enlarge to their own minimum.
    size = read_json(merged / "processor_config.json")["image_processor"]["size"]
    assert size["longest_edge"] <= max(2 * 56 * 56, size["shortest_edge"]) < 1_000_000
    steps = {line["stage"]: line for line in run.metrics() if "loss" in line}
    assert set(steps) == {"sft", "grpo"}
