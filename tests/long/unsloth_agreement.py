"""Log-probabilities, losses, gradient norms and rewards of one recipe on hf and on Unsloth. See tests/long/run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_unsloth_cpu import STEPS, recipe_of
from training import small_recipe
from unsloth_cpu.process import run_program

from toolkit.backends.hf import HfBackend
from toolkit.recipe import dump_recipe


def trained_adapter(folder: Path) -> Path:
    """An adapter away from zero, which both backends start from."""
    recipe = small_recipe(folder, {"lora": {"vision": True, "dropout": 0.0}}, name="start")  # an adapter keeps its own
    policy = HfBackend().load(recipe, None, trainable=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in policy.model.named_parameters():
            if "lora_B" in name:
                value.copy_(0.02 * torch.randn(value.shape, generator=generator))
    HfBackend().save(policy, folder / "adapter")
    return folder / "adapter"


def both_backends(folder: Path, gpu: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What hf and Unsloth make of one recipe, with the same rows, seed and adapter; see ``unsloth_cpu.agree``."""
    start = trained_adapter(folder)
    found = {}
    for backend in ("hf", "unsloth"):
        tables = {
            "model": {"precision": "16bit", "adapter": start},
            "grpo": {"beta": 0.0},
            "evaluate": {"before": True},
        }
        (folder / backend).mkdir()
        recipe = recipe_of(folder / backend, backend, tables)
        file, out = folder / backend / "recipe.toml", folder / backend / "found.json"
        file.write_text(dump_recipe(recipe), encoding="utf-8")
        done = run_program(["-m", "unsloth_cpu.agree", str(file), str(out)], folder / "counts.json", gpu)
        assert done.status == 0, done.output[-6000:]
        found[backend] = json.loads(out.read_text(encoding="utf-8"))
    return found["hf"], found["unsloth"]


@pytest.mark.parametrize(("gpu", "log_prob", "relative"), [("T4", 0.1, 5e-3), ("L4", 0.1, 5e-3)])
def test_both_backends_agree(tmp_path: Path, gpu: str, log_prob: float, relative: float) -> None:
    """On a T4: float32, with Unsloth's norms in float16 and its rollout under float16 autocast. On an L4: bfloat16.

    The bounds are about four times what was measured.
    """
    hf, unsloth = both_backends(tmp_path, gpu)
    print(json.dumps({"hf": hf, "unsloth": unsloth}))  # noqa: T201  # shown by pytest -s and when it fails
    for theirs, ours in zip(unsloth["log_probs"], hf["log_probs"], strict=True):
        assert theirs == pytest.approx(ours, abs=log_prob)
    for stage in ("sft", "grpo"):
        assert len(unsloth[stage]) == len(hf[stage]) == STEPS
        for theirs, ours in zip(unsloth[stage], hf[stage], strict=True):
            assert theirs == pytest.approx(ours, rel=relative), stage
