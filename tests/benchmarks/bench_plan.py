"""Time `toolkit plan` for 100,000 rows: the first time, with the rows indexed, and again.

    python tests/benchmarks/bench_plan.py [--rows 100000] [--rounds 3]

The import of transformers' AutoProcessor, without which tokens cannot be counted, is timed in the same run.
Prints a table, then one JSON object. The exit code is 1 if a limit is missed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

SECONDS_LIMIT = 5.0
"""Limit for a plan that was made before, with another batch size."""
RATIO_LIMIT = 1.5
"""Limit for a plan of indexed rows whose tokens were never counted, relative to the import."""
IMAGES = 200
RECIPE = """[run]
name = "planned"
[data]
task = "mcq"
train = "rows.jsonl"
image_root = "."
[model]
max_tokens = 256
[images]
max_side = 112
[sft]
[evaluate]
"""
IMPORT = [sys.executable, "-c", "from transformers import AutoProcessor"]


def write_data(folder: Path, rows: int) -> None:
    for number in range(IMAGES):
        Image.new("L", (128, 96), number).save(folder / f"{number}.png")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            options = {"A": "mass", "B": "nodule", "C": "effusion", "D": "nothing", "answer": "ABCD"[number % 4]}
            row = {"question": f"What does X-ray {number} show?", **options, "image": f"{number % IMAGES}.png"}
            file.write(json.dumps(row) + "\n")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")


def seconds(command: list[str], folder: Path, cache: Path) -> float:
    environment = {**os.environ, "TOOLKIT_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True, env=environment)
    return time.perf_counter() - started


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    plan = [sys.executable, "-m", "toolkit", "plan", "recipe.toml"]
    cache = folder / "cache"
    seconds(IMPORT, folder, cache)  # the first start compiles and fills the disk cache
    taken: dict[str, list[float]] = {"import": [], "first": [], "indexed": [], "again": []}
    for number in range(rounds):
        taken["import"].append(seconds(IMPORT, folder, cache))
        shutil.rmtree(cache, ignore_errors=True)
        taken["first"].append(seconds(plan, folder, cache))
        shutil.rmtree(cache / "plans")
        taken["indexed"].append(seconds(plan, folder, cache))
        taken["again"].append(seconds([*plan, "--set", f"sft.batch_size={number + 2}"], folder, cache))
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), given.rows)
        taken = measure(Path(folder), given.rounds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    labels = {
        "import": "from transformers import AutoProcessor",
        "first": f"toolkit plan, {given.rows:,} rows never read",
        "indexed": "the rows indexed, tokens and weights never counted",
        "again": "again, with another batch size",
    }
    for name, median in medians.items():
        print(f"{labels[name]:<52} {median:>7.2f} s")
    ratio = medians["indexed"] / medians["import"]
    good = medians["again"] < SECONDS_LIMIT and ratio < RATIO_LIMIT
    print(f"again under {SECONDS_LIMIT} s; indexed / import {ratio:.2f} (at most {RATIO_LIMIT})")
    print(json.dumps({"benchmark": Path(__file__).stem, "seconds": medians, "ratio": ratio, "good": good}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
