"""Runs of [imagegen] that are small enough for tests: a recipe in TOML, run here or in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "imagegen_tiny.toml"

SMALL = (
    "imagegen.synthetic.images=150",
    "imagegen.selector.epochs=2",
    "imagegen.selector.heads=2",
    "imagegen.selector.validation=0.3",
    "imagegen.selector.target_precision=0.1",
    "imagegen.policy.epochs=2",
    "imagegen.judge.epochs=2",
    "imagegen.judge.images=24",
    "imagegen.judge.features=8",
    "imagegen.judge.bootstrap=100",
    "imagegen.generator.steps=3",
    "imagegen.update.sft_steps=4",
    "imagegen.update.sft_batch_size=8",
    "imagegen.update.rounds=2",
    "imagegen.update.prompts_per_round=4",
    "imagegen.update.images_per_prompt=4",
    "imagegen.update.micro_batch=8",
    'imagegen.guards.action="log"',
    "run.checkpoint_steps=2",
)
"""Changes of the tiny recipe for a run in seconds that learns nothing: a test of wiring."""


LICENCE = "imagegen.generator.licence=creativeml-openrail-m"
"""Setting of a folder with a Stable Diffusion pipeline, whose licence does not follow from its name."""


def changes(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def start(folder: Path, name: str, settings: Sequence[str] = SMALL) -> "subprocess.Popen[str]":
    """Start the tiny recipe with changes in a process of its own, in ``folder``."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "toolkit", "run", str(RECIPE), "--set", f"run.name={name}", *changes(settings)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def results(folder: Path, name: str) -> dict[str, Any]:
    """The [imagegen] part of a run's results.json."""
    found: dict[str, Any] = json.loads((folder / "runs" / name / "results.json").read_text(encoding="utf-8"))
    part: dict[str, Any] = found["imagegen"]
    return part


def numbers(value: Any) -> list[float]:
    """All numbers in a nested structure, in order."""
    if isinstance(value, dict):
        return [number for key in value for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for one in value for number in numbers(one)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []
