"""Commands whose interruption is tested, and the parts of what they write that must not depend on it."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.faults.children import ROOT, Ended, run_command
from tests.helpers.downloads import COLUMNS
from tests.helpers.imagegen_runs import SMALL
from toolkit.runfolder import csv_text

CHEST = (
    "run.checkpoint_steps=2",
    "lora.r=4",
    "data.synthetic.train=40",
    "data.synthetic.test=20",
    "sft.max_steps=12",
    "sft.batch_size=4",
    "grpo.max_steps=6",
    "grpo.prompts_per_step=2",
    "grpo.generations=2",
    "grpo.micro_batch=4",
    "grpo.max_completion_tokens=40",
    "evaluate.limit=20",
    "export.verify=4",
    "export.optional=[]",
)
LESION = (
    "run.checkpoint_steps=2",
    "lora.r=4",
    "data.synthetic.train=16",
    "data.synthetic.validation=6",
    "data.synthetic.test=8",
    "validation.every_steps=2",
    "validation.patience=2",
    "sft.max_steps=6",
    "sft.batch_size=4",
    "grpo.max_steps=4",
    "grpo.prompts_per_step=2",
    "grpo.generations=2",
    "grpo.micro_batch=4",
    'grpo.probe_on_failure="report"',
    "evaluate.limit=8",
    "export.verify=2",
)
STEPS = (
    "run.checkpoint_steps=2",
    "lora.r=4",
    "data.synthetic.train=30",
    "data.synthetic.test=10",
    "sft.max_steps=6",
    "sft.batch_size=4",
    "evaluate.max_tasks=2",
    "export.verify=2",
)

VOLATILE = (
    "log.txt",
    "compute.jsonl",
    "run.json",
    "plan.json",
    "README.md",
    "done.json",
    "manifest.json",
    "identifiers.json",
    "trainer_state.json",
    "training_args.bin",
    "images.parquet",
    "*/.index/*",
    ".index/*",
    ".*.lock",
    "report.html",
    "written.json",
    ".written.json",
)
"""Files of a run with times, paths or digests of such files. Their figures are in results.json and metrics.jsonl."""

STAMP = re.compile(r"\d{8}-\d{6}")
"""The time in the name of a folder of checkpoints of an image generator."""

VOLATILE_KEYS = re.compile(
    r".*time.*|.*second.*|started|finished|resumed_from|compute|gpu_memory|images|duration|.*_hours|peak_.*"
)
"""Keys of results.json and metrics.jsonl with times, use of the machine, and counters of the image cache."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A command.

    Args:
        name: the name.
        argv: its arguments. The working directory is the folder of the trial.
        prepare: writes what the command needs into the folder.
        written: folders below the trial's folder that the command may change, besides the cache.
        run: name of the run folder that it trains or changes. Empty: none.
    """

    name: str
    argv: tuple[str, ...]
    prepare: Callable[[Path], None]
    written: tuple[str, ...] = ("runs",)
    run: str = ""


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """What a scenario writes without a fault, how long it takes, and how many files it changes."""

    digests: dict[str, str]
    seconds: float
    events: tuple[str, ...]


def settings(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for value in values for part in ("--set", value))


def run_of(recipe: str, name: str, values: Sequence[str]) -> Scenario:
    file = str(ROOT / "recipes" / recipe)
    return Scenario(name, ("run", file, *settings([*values, f"run.name={name}"])), lambda folder: None, run=name)


def copy_chest(folder: Path) -> None:
    """Put a finished run of the scenario `chest` into the folder."""
    shutil.copytree(undisturbed_folder("chest") / "runs", folder / "runs")


def chest_and_out(folder: Path) -> None:
    copy_chest(folder)
    (folder / "out").mkdir()


def download(folder: Path) -> None:
    """Write a download in the layout of HAM10000: 24 images of 12 lesions, with masks."""
    images, masks = folder / "download" / "images", folder / "download" / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    rows: list[list[object]] = [list(COLUMNS)]
    for number in range(24):
        name = f"ISIC_{number:07d}"
        diagnosis = ("nv", "mel", "bkl")[number // 2 % 3]
        rows.append([f"HAM_{number // 2}", name, diagnosis, "histo", "50.0", "male", "back", "made"])
        pixels = np.random.default_rng(number).integers(0, 255, (45, 60, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{name}.jpg")
        mask = np.zeros((45, 60), np.uint8)
        mask[10:30, 10 + number : 30 + number] = 255
        Image.fromarray(mask).save(masks / f"{name}_segmentation.png")
    (folder / "download" / "metadata.csv").write_text(csv_text(rows), encoding="utf-8")


def written_rows(folder: Path) -> None:
    """Put the synthetic dataset of the scenario `chest` into the folder, with a recipe."""
    shutil.copytree(undisturbed_folder("chest") / "runs/chest/synthetic", folder / "data")
    shutil.rmtree(folder / "data/.index", ignore_errors=True)
    text = (ROOT / "recipes/quickstart.toml").read_text(encoding="utf-8")
    head, _, rest = text.partition("[data.synthetic]")
    files = '[data]\ntask = "mcq"\ntrain = "data/train.json"\ntest = "data/test.json"\n'
    recipe = head.partition("[data]")[0] + files + "[images]" + rest.partition("[images]")[2]
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        run_of("quickstart.toml", "chest", CHEST),
        run_of("lesions_tiny.toml", "lesion", LESION),
        run_of("steps_tiny.toml", "steps", STEPS),
        run_of("imagegen_tiny.toml", "imagegen", SMALL),
        Scenario(
            "files",
            (
                "run",
                "recipe.toml",
                *settings([value for value in CHEST if "synthetic" not in value]),
                "--set",
                "run.name=files",
            ),
            written_rows,
            run="files",
        ),
        Scenario("index", ("data", "inspect", "recipe.toml"), written_rows, ()),
        Scenario(
            "prepare",
            (
                *("data", "prepare", "ham10000", "--images", "download/images", "--metadata", "download/metadata.csv"),
                *("--masks", "download/masks", "--workers", "1", "--out", "out"),
            ),
            download,
            ("out",),
        ),
        Scenario(
            "synthetic",
            ("data", "synthetic", "chest", "--out", "out", "--train", "12", "--test", "6"),
            lambda folder: None,
            ("out",),
        ),
        Scenario("evaluate", ("evaluate", "runs/chest", "--name", "more"), copy_chest, run="chest"),
        Scenario(
            "predict",
            ("predict", "runs/chest", "--data", "runs/chest/synthetic/test.json", "--out", "out/answers.csv"),
            chest_and_out,
            ("runs", "out"),
        ),
        Scenario(
            "export", ("export", "runs/chest", "--to", "adapter,merged", "--out", "out"), copy_chest, ("runs", "out")
        ),
        Scenario("report", ("report", "runs/chest", "--out", "report.md"), copy_chest, ("runs", "report.md")),
    )
}


@cache
def _references() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="toolkit-faults-")


def undisturbed_folder(name: str) -> Path:
    """Return the folder in which the scenario was run without a fault."""
    undisturbed(name)
    return Path(_references().name, name)


@cache
def undisturbed(name: str) -> Undisturbed:
    """Run a scenario without a fault. The result is kept for this process."""
    scenario, folder = SCENARIOS[name], Path(_references().name, name)
    folder.mkdir()
    scenario.prepare(folder)
    ended = run_command(scenario.argv, folder, 300)
    if ended.status != 0 or ended.has_traceback:
        raise RuntimeError(f"{name} fails without a fault: {ended.stderr[-3000:]}")
    return Undisturbed(digests(scenario, folder, ended), ended.seconds, ended.events)


def digests(scenario: Scenario, folder: Path, ended: Ended) -> dict[str, str]:
    """Return a digest of each output that must not depend on faults, and of the printed report."""
    found = {}
    for name in scenario.written:
        place = folder / name
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            path = STAMP.sub("TIME", file.relative_to(folder).as_posix())
            if file.is_file() and not is_volatile(file, folder):
                found[path] = hashlib.sha256(content(file, folder)).hexdigest()
    if not scenario.written:
        found["stdout"] = hashlib.sha256(ended.stdout.replace(str(folder), "").encode()).hexdigest()
    return found


def is_volatile(file: Path, folder: Path) -> bool:
    path = file.relative_to(folder).as_posix()
    if any(fnmatch(path, f"*/{pattern}") or fnmatch(path, pattern) for pattern in VOLATILE):
        return True
    # A stop by a signal leaves a checkpoint of its own step, so only the last one is the same.
    checkpoint = next((parent for parent in file.parents if parent.parent.name == "checkpoints"), None)
    return checkpoint is not None and checkpoint != max(checkpoint.parent.iterdir())


def content(file: Path, folder: Path) -> bytes:
    """Return what is compared of a file: its bytes, or its figures."""
    if file.name == "results.json":
        text = json.dumps(stable(json.loads(file.read_text(encoding="utf-8"))), sort_keys=True)
    elif file.name == "metrics.jsonl":
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        # A stage that was resumed has no means of all its steps in its last line, and one line more if it was stopped.
        text = json.dumps([stable(line) for line in lines if "train_runtime" not in line])
    else:
        return file.read_bytes().replace(str(folder).encode(), b"")
    return text.replace(str(folder), "").encode()


def stable(value: Any) -> Any:
    """Return JSON without the keys that depend on time and machine."""
    if isinstance(value, dict):
        return {key: stable(inner) for key, inner in value.items() if not VOLATILE_KEYS.fullmatch(key)}
    return [stable(inner) for inner in value] if isinstance(value, list) else value
