"""Log-probabilities, losses, gradient norms and rewards of one recipe on hf and on Unsloth. See tests/long/run."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.training import Tables, small_recipe
from tests.helpers.unsloth_runs import STEPS, recipe_of
from tests.unsloth_cpu.process import run_program
from toolkit.models.hf import HfBackend
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
    """Return the results of ``unsloth_cpu.agree`` on hf and on Unsloth, with the same rows, seed and adapter."""
    start = trained_adapter(folder)
    found = {}
    for backend in ("hf", "unsloth"):
        tables: Tables = {
            "model": {"precision": "16bit", "adapter": start},
            "grpo": {"beta": 0.0},
            "evaluate": {"before": True},
        }
        (folder / backend).mkdir()
        recipe = recipe_of(folder / backend, backend, tables)
        file, out = folder / backend / "recipe.toml", folder / backend / "found.json"
        file.write_text(dump_recipe(recipe), encoding="utf-8")
        done = run_program(["-m", "tests.unsloth_cpu.agree", str(file), str(out)], folder / "counts.json", gpu)
        assert done.status == 0, done.output[-6000:]
        found[backend] = json.loads(out.read_text(encoding="utf-8"))
    return found["hf"], found["unsloth"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Allowed differences, two to four times what was measured: absolute for log-probabilities, otherwise relative."""

    log_prob: float
    loss: float
    grad_norm: float
    sampled: int
    """GRPO steps in which both sample the same tokens. In later ones another token may have the larger probability."""


@pytest.mark.parametrize(
    ("gpu", "bounds"),
    [
        # float32, with Unsloth's norms in float16 and its rollout under float16 autocast.
        ("T4", Bounds(log_prob=0.1, loss=2e-3, grad_norm=1e-2, sampled=STEPS)),
        # bfloat16: its rounding moves the hf backend's own losses by 0.3 %.
        ("L4", Bounds(log_prob=0.4, loss=4e-3, grad_norm=4e-2, sampled=1)),
    ],
    ids=["T4", "L4"],
)
def test_both_backends_agree(tmp_path: Path, gpu: str, bounds: Bounds) -> None:
    hf, unsloth = both_backends(tmp_path, gpu)
    sys.stdout.write(f"\n{json.dumps({'hf': hf, 'unsloth': unsloth})}\n")  # shown by pytest -s and when it fails
    for theirs, ours in zip(unsloth["log_probs"], hf["log_probs"], strict=True):
        assert theirs == pytest.approx(ours, abs=bounds.log_prob)
    assert len(unsloth["sft"]) == len(hf["sft"]) == len(unsloth["grpo"]) == len(hf["grpo"]) == STEPS
    pairs = [*zip(unsloth["sft"], hf["sft"], strict=True), *zip(unsloth["grpo"], hf["grpo"], strict=True)]
    for theirs, ours in pairs[: STEPS + bounds.sampled]:
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=bounds.loss)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=bounds.grad_norm)
        assert theirs.get("reward") == ours.get("reward")  # of equal tokens


@pytest.mark.parametrize(("gpu", "rounding"), [("T4", 1e-3), ("L4", 1e-6)])
def test_an_update_without_zero_variance_groups_has_equal_gradients(tmp_path: Path, gpu: str, rounding: float) -> None:
    tables: Tables = {"model": {"precision": "16bit"}, "grpo": {"beta": 0.0, "micro_batch": 4, "max_steps": 3}}
    recipe = recipe_of(tmp_path, "unsloth", tables)
    file, out = tmp_path / "recipe.toml", tmp_path / "found.json"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    done = run_program(["-m", "tests.unsloth_cpu.zero_variance", str(file), str(out)], tmp_path / "counts.json", gpu)
    assert done.status == 0, done.output[-6000:]
    found = json.loads(out.read_text(encoding="utf-8"))
    assert min(found["left_out"]) >= 0.5
    assert max(found["largest"]) > 0
    for difference, largest in zip(found["difference"], found["largest"], strict=True):
        assert difference <= rounding * largest
