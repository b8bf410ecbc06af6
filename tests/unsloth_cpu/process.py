"""`toolkit run` through the harness, as tests start it: a process of its own, since Unsloth rewrites its libraries."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.recipe import Recipe, dump_recipe
from toolkit.run import RunFolder

RUN = Path(__file__).with_name("run.py")
ROOT = RUN.parents[2]
MOST_SECONDS = 1800


@dataclass(frozen=True, slots=True)
class Done:
    """What a process left: exit status, output, and how often each stand-in answered."""

    status: int
    output: str
    counts: Mapping[str, int]


def run_toolkit(recipe: Recipe, gpu: str, *, stop_at: str = "", oom: str = "") -> Done:
    """Run the recipe's stages on the pretended GPU.

    Args:
        recipe: what to run; it is written beside its run folder.
        gpu: a key of ``gpu.GPUS``.
        stop_at: the process gets SIGINT once it prints this.
        oom: errors of GPU memory to inject, as ``oom`` takes them.
    """
    recipe.run.folder.mkdir(parents=True, exist_ok=True)
    file = recipe.run.folder / f"{recipe.run.name}.toml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    return run_program(["run", str(file)], recipe.run.folder / "counts.json", gpu, stop_at=stop_at, oom=oom)


def run_program(arguments: list[str], counts: Path, gpu: str, *, stop_at: str = "", oom: str = "") -> Done:
    """Run ``run.py`` with these arguments; ``counts`` receives the stand-ins' counts. See ``run_toolkit``."""
    environment = {
        **os.environ,
        "UNSLOTH_CPU_GPU": gpu,
        "UNSLOTH_CPU_OOM": oom,
        "UNSLOTH_CPU_COUNTS": str(counts),
        "HF_HUB_OFFLINE": "1",
    }
    counts.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-u", str(RUN), *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if stop_at and stop_at in line:
            process.send_signal(signal.SIGINT)
            stop_at = ""
    status = process.wait(timeout=MOST_SECONDS)
    found = json.loads(counts.read_text(encoding="utf-8")) if counts.is_file() else {}
    return Done(status, "".join(lines), found)


def figures(recipe: Recipe, stage: str, name: str) -> list[float]:
    """A figure of a training stage, step by step."""
    lines: list[dict[str, Any]] = RunFolder(recipe.run_folder).metrics()
    return [line[name] for line in lines if line["stage"] == stage and name in line]
