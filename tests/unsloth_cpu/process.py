"""`toolkit run` in the harness, for tests: a separate process, because Unsloth patches its libraries."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.recipe import Recipe, dump_recipe
from toolkit.runfolder import RunFolder

RUN = Path(__file__).with_name("run.py")
ROOT = RUN.parents[2]
MOST_SECONDS = 1800
SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True, slots=True)
class Done:
    """What a process left: exit status, output, and how often each stand-in answered."""

    status: int
    output: str
    counts: Mapping[str, int]


def run_toolkit(recipe: Recipe, gpu: str, *, stop_at: Path | None = None, oom: str = "") -> Done:
    """Run the recipe's stages on the simulated GPU.

    Args:
        recipe: what to run; it is written beside its run folder.
        gpu: a key of ``gpu.GPUS``.
        stop_at: the process gets SIGINT once this file or folder exists.
        oom: errors of GPU memory to inject, as ``oom`` takes them.
    """
    recipe.run.folder.mkdir(parents=True, exist_ok=True)
    file = recipe.run.folder / f"{recipe.run.name}.toml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    return run_program(["run", str(file)], recipe.run.folder / "counts.json", gpu, stop_at=stop_at, oom=oom)


def run_program(arguments: list[str], counts: Path, gpu: str, *, stop_at: Path | None = None, oom: str = "") -> Done:
    """Run ``run.py`` with these arguments; ``counts`` receives the stand-ins' counts. See ``run_toolkit``."""
    environment = {
        **os.environ,
        "UNSLOTH_CPU_GPU": gpu,
        "UNSLOTH_CPU_OOM": oom,
        "UNSLOTH_CPU_COUNTS": str(counts),
        "HF_HUB_OFFLINE": "1",
    }
    counts.unlink(missing_ok=True)
    printed = counts.with_suffix(".out")
    with printed.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-u", str(RUN), *arguments], cwd=ROOT, env=environment, stdout=out, stderr=out
        )
        try:
            status = _wait(process, stop_at)
        finally:
            process.kill()
    found = json.loads(counts.read_text(encoding="utf-8")) if counts.is_file() else {}
    return Done(status, printed.read_text(encoding="utf-8", errors="replace"), found)


def _wait(process: subprocess.Popen[bytes], stop_at: Path | None) -> int:
    """Return the exit status; SIGINT is sent when ``stop_at`` appears."""
    end = time.monotonic() + MOST_SECONDS
    while (status := process.poll()) is None:
        if time.monotonic() > end:
            raise subprocess.TimeoutExpired(process.args, MOST_SECONDS)
        if stop_at is not None and stop_at.exists():
            process.send_signal(signal.SIGINT)
            stop_at = None
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return status


def figures(recipe: Recipe, stage: str, name: str) -> list[float]:
    """A figure of a training stage, step by step."""
    lines: list[dict[str, Any]] = RunFolder(recipe.run_folder).metrics()
    return [line[name] for line in lines if line["stage"] == stage and name in line]
