"""Steps in the CSV of the step predictor before this toolkit, written for tests: three tasks' worth of real cells."""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers.recipes import make_recipe
from toolkit.recipe import Recipe

Step = tuple[str, str | None, list[int] | None]
"""Action, target, coords."""

SIZE = (400, 300)
LOAD: tuple[Step, ...] = (
    ("CLICK", "Load volume", [100, 50]),
    ("SCROLL", "Axial slice", [200, 150]),
    ("TEXT", "Note", [40, 270]),
    ("COMPLETE", None, None),
)
COLUMNS = ("Task_id", "Image_id", "Instruction", "Output", "Grounding")


def memory_after(steps: Sequence[Step], number: int) -> dict[str, Any]:
    """The memories that step ``number`` (from 1) leaves."""
    done = [target for _, target, _ in steps[:number] if target]
    left = [target for _, target, _ in steps[number:] if target]
    return {
        "Short Term": {"last_action": steps[number - 1][0], "last_observation": "the dialog's open", "last_lesson": ""},
        "Long Term": {"overall_progress": f"{number} steps", "completed_subtasks": done, "remaining_subtasks": left},
    }


def row(
    task: Any, number: int, steps: Sequence[Step] = LOAD, write: Callable[[Any], str] = json.dumps, **more: Any
) -> dict[str, Any]:
    """The row of one step, as the CSV has it."""
    action, target, coords = steps[number - 1]
    box = None if coords is None else [coords[0] - 10, coords[1] - 10, coords[0] + 10, coords[1] + 10]
    predicted = {"predicted_action": {"action": action, "target": target, "coords": coords}}
    output = {**memory_after(steps, number), "Reason": f"step {number} comes now", "Predicted": predicted}
    screen = f"{task}_{number}"
    original = {"step": number, "action": action, "target": target, "screenshot": screen, "note": "", "bbox": box}
    truth = {"ground_truth": {"action": action, "target": target, "original_step_data": original}}
    base = {"Task_id": task, "Image_id": screen, "Instruction": f"Load scan {task} and annotate it"}
    return {**base, "Output": write(output), "Grounding": write(truth), **more}


def task_rows(task: Any, write: Callable[[Any], str] = json.dumps) -> list[dict[str, Any]]:
    """All steps of one task."""
    return [row(task, number, write=write) for number in range(1, len(LOAD) + 1)]


def write_csv(folder: Path, rows: Iterable[dict[str, Any]], name: str = "task_results.csv") -> Path:
    """The rows as a CSV, and a screenshot for each in ``images``."""
    rows = list(rows)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for one in rows:
        screen = folder / "images" / f"{one['Image_id']}.png"
        if one["Image_id"] and not screen.exists() and "." not in one["Image_id"]:
            Image.new("RGB", SIZE, (len(str(one["Output"])) % 256, 90, 120)).save(screen)
    with (folder / name).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def steps_recipe(folder: Path, steps: dict[str, Any] | None = None, model: str = "tiny", **data: Any) -> Recipe:
    """A recipe over ``task_results.csv`` in the folder."""
    base = {"task": "steps", "train": str(folder / "task_results.csv"), "image_root": folder / "images"}
    split = {"split": {"test": 0, "validation": 0}}
    table = {**base, **split, "steps": steps or {}, **data}
    return make_recipe({"run": {"name": "r"}, "model": {"name": model}, "data": table, "sft": {}})
