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
MAX_SECONDS = 1800
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a process: exit status, output, and the calls of each substitute."""

    status: int
    output: str
    counts: Mapping[str, int]


def run_toolkit(recipe: Recipe, gpu: str, *, stop_at: Path | None = None, oom: str = "") -> Done:
    """Run the recipe's stages on the simulated GPU.

    Args:
        recipe: The recipe, which is written beside its run folder.
        gpu: A key of ``gpu.GPUS``.
        stop_at: The process gets SIGINT when this file or folder exists.
        oom: Out-of-memory errors to inject. See ``oom``.
    """
    recipe.run.folder.mkdir(parents=True, exist_ok=True)
    file = recipe.run.folder / f"{recipe.run.name}.toml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    return run_program(["run", str(file)], recipe.run.folder / "counts.json", gpu, stop_at=stop_at, oom=oom)


def run_program(arguments: list[str], counts: Path, gpu: str, *, stop_at: Path | None = None, oom: str = "") -> Done:
    """Run ``run.py`` with these arguments. ``counts`` receives the substitutes' counts. See ``run_toolkit``."""
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
    """Return the exit status. Send SIGINT when ``stop_at`` appears."""
    end = time.monotonic() + MAX_SECONDS
    while (status := process.poll()) is None:
        if time.monotonic() > end:
            raise subprocess.TimeoutExpired(process.args, MAX_SECONDS)
        if stop_at is not None and stop_at.exists():
            process.send_signal(signal.SIGINT)
            stop_at = None
        time.sleep(POLL_SECONDS)
    return status


def figures(recipe: Recipe, stage: str, name: str) -> list[float]:
    """A figure of a training stage, step by step."""
    lines: list[dict[str, Any]] = RunFolder(recipe.run_folder).metrics()
    return [line[name] for line in lines if line["stage"] == stage and name in line]
