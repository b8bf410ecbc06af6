"""Two processes of one run under torch.distributed: the weights of one process, and one run folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.problems import raises
from tests.helpers.training import small_recipe
from toolkit.pipeline import run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder

# `accelerate launch` uses this launcher with several GPUs. On a CPU, it would always start one process.
LAUNCH = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    "-m",
    "toolkit",
    "run",
)


def two_processes(recipe: Recipe, folder: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*LAUNCH, str(folder / f"{recipe.run.name}.toml")]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def weights(recipe: Recipe, stage: str) -> dict[str, torch.Tensor]:
    return load_file(recipe.run_folder / "stages" / stage / "weights" / "adapter_model.safetensors")


def tables(folder: Path) -> dict[str, dict[str, Any]]:
    reward = folder / "deviation.py"
    reward.write_text("def length(sample, answer):\n    return min(len(answer.text), 200) / 200\n", encoding="utf-8")
    return {
        "lora": {"dropout": 0.0},
        "data": {"synthetic": {"kind": "chest", "train": 24, "validation": 4, "test": 12, "size": 64}},
        "validation": {"every_steps": 2, "weights": "last"},
        "sft": {"max_steps": 3},
        "grpo": {"max_steps": 2, "probe_prompts": 2, "probe_max_truncated": 1.0},
        "rewards": {"custom": (f"{reward}:length",)},
    }


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one_and_write_one_run_folder(tmp_path: Path) -> None:
    one, two = (small_recipe(tmp_path, tables(tmp_path), name=name) for name in ("one", "two"))
    run_recipe(one, STAGES)
    process = two_processes(two, tmp_path)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    assert out.count("majority baseline") == 1
    run = RunFolder(two.run_folder)
    assert run.finished_stages() == RunFolder(one.run_folder).finished_stages()
    steps = [(line["stage"], line["step"]) for line in run.metrics() if "loss" in line]
    assert steps == [("sft", 1), ("sft", 2), ("sft", 3), ("grpo", 1), ("grpo", 2)]
    assert run.metrics_file.read_text().count('"loss"') == 5
    assert run.metrics_file.read_text().count('"validation/n"') == 3  # the first process validates for both
    assert not list(run.path.rglob("*partial*"))
    for stage in ("sft", "grpo"):
        (checkpoint, *_) = (run.path / "stages" / stage / "checkpoints").iterdir()
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= {file.name for file in checkpoint.iterdir()}
    # Each SFT step has the same rows, divided between processes. The order of sums differs, and Adam divides by them.
    losses = [
        [line["loss"] for line in each.metrics() if "loss" in line][:3] for each in (RunFolder(one.run_folder), run)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    alone, shared = weights(one, "sft"), weights(two, "sft")
    moved = [name for name in alone if "lora_B" in name]  # they begin at 0
    apart = sum(float((alone[name] - shared[name]).square().sum()) for name in moved)
    assert apart < 0.05**2 * sum(float(alone[name].square().sum()) for name in moved)
    trained = weights(two, "grpo")
    assert any(not torch.equal(trained[name], shared[name]) for name in trained)


@pytest.mark.slow
def test_two_processes_stop_together_and_resume(tmp_path: Path) -> None:
    changes = {**tables(tmp_path), "sft": {"max_steps": 400}, "run": {"checkpoint_steps": 1000}}
    recipe = small_recipe(tmp_path, changes, name="stopped")
    process = two_processes(recipe, tmp_path)
    run = RunFolder(recipe.run_folder)
    until = time.monotonic() + 200
    while time.monotonic() < until and not (run.metrics_file.is_file() and '"sft"' in run.metrics_file.read_text()):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # like a terminal: to the launcher and both processes
    _, err = process.communicate(timeout=200)
    assert process.returncode != 0
    (checkpoint,) = (run.path / "stages/sft/checkpoints").iterdir()
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {file.name for file in checkpoint.iterdir()}, err[-2000:]


def test_a_step_that_two_processes_cannot_divide_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.errors import TrainingError
    from toolkit.training.distributed import per_process

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert per_process(8, "[sft] accumulation") == 4
    with raises(TrainingError, "training.step_not_divisible") as caught:
        per_process(3, "[sft] accumulation")
    assert (caught.problem.place, caught.problem.value) == ("[sft] accumulation", 3)
    assert "multiple of 2" in caught.problem.remedy
