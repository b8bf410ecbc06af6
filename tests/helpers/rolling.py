"""Tasks of steps whose numbers are known by hand, and a backend that answers them by a script instead of a model."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.recipes import load_recipe, make_recipe
from tests.helpers.stepping import LOAD, row, task_rows, write_csv
from toolkit.models.backend import Completion, Policy, Row, Sampling
from toolkit.models.hf import HfBackend
from toolkit.models.prompts import IMAGE_KEY
from toolkit.recipe import Recipe, dump_recipe

TASKS = ("1", "2", "3", "4")

Script = Callable[[str, int, dict[str, Any]], str]
"""(task, step, the long-term memory in the prompt) -> the completion."""


def right(task: str, step: int, memory: dict[str, Any]) -> str:
    """The reference."""
    return str(row(task, step)["Output"])


def wrong(task: str, step: int) -> str:
    """The reference's memories with an action that no step has."""
    output = json.loads(right(task, step, {}))
    output["Predicted"]["predicted_action"]["action"] = "ZOOM"
    return json.dumps(output)


class Scripted(HfBackend):
    """Answer each step by its image. ``fail_after``: calls of ``generate`` after which it raises an exception."""

    def __init__(self, script: Script, fail_after: int | None = None) -> None:
        self.script, self.fail_after = script, fail_after
        self.batches: list[list[tuple[str, int]]] = []
        self.memories: dict[tuple[str, int], list[dict[str, Any]]] = {}

    def load(self, recipe: Recipe, weights: Path | None, *, trainable: bool, mergeable: bool = False) -> Policy:
        return self.load_without_model(recipe)

    def generate(self, policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[list[Completion]]:
        if len(self.batches) == self.fail_after:
            raise KeyboardInterrupt
        steps = [step_of(one) for one in rows]
        self.batches.append(steps)
        answers = []
        for (task, step), one in zip(steps, rows, strict=True):
            memory = long_term(one)
            self.memories.setdefault((task, step), []).append(memory)
            answers.append([Completion(self.script(task, step, memory), 1, truncated=False)])
        return answers


def step_of(one: Row) -> tuple[str, int]:
    task, step = Path(one.images[0].info[IMAGE_KEY].partition("#")[0]).stem.rsplit("_", 1)
    return task, int(step)


def long_term(one: Row) -> dict[str, Any]:
    text = str(one.messages[0]["content"][-1]["text"])
    found = re.search(r"^Long-term memory: (.*)$", text, re.MULTILINE)
    return dict(json.loads(found[1])) if found else {}


def rolling_recipe(folder: Path, evaluate: dict[str, Any] | None = None, **steps: Any) -> Recipe:
    """Training on two tasks, and held out the tasks of ``TASKS`` unless ``test_results.csv`` is there already."""
    if not (folder / "test_results.csv").exists():
        write_csv(folder, [one for task in TASKS for one in task_rows(task)], "test_results.csv")
    write_csv(folder, [one for task in ("11", "12") for one in task_rows(task)])
    base = {
        "run": {"name": "rolling", "folder": folder / "runs"},
        "model": {"max_tokens": 2048},
        "data": {
            "task": "steps",
            "train": str(folder / "task_results.csv"),
            "test": str(folder / "test_results.csv"),
            "image_root": folder / "images",
            "split": {"test": 0, "validation": 0},
            "steps": steps,
            "max_dropped": 0.5,
        },
        "images": {"max_side": 112},
        "evaluate": {"batch_size": 3, "bootstrap": 100, **(evaluate or {})},
    }
    file = folder / "rolling.toml"
    file.write_text(dump_recipe(make_recipe(base)), encoding="utf-8")
    return load_recipe(file)


LENGTH = len(LOAD)
