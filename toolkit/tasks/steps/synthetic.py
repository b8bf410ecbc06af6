"""Practice tasks as files: one CSV a split with a row a step, and the screens that the rows name."""

import csv
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toolkit.data.task import Synthetic
from toolkit.recipe import Phantom
from toolkit.synthetic.gui_tasks import Step, Task, answer, make_task, place
from toolkit.synthetic.gui_viewer import LEAST_SIDE, draw_screen
from toolkit.synthetic.gui_widgets import WIDGETS

COLUMNS = ("Task_id", "Image_id", "Instruction", "Output", "Grounding", "Application")


def write_steps(folder: Path, phantom: Phantom, seed: int) -> dict[str, Path]:
    """Write tasks step by step and give the CSV file of each split that has rows.

    ``folder`` gets ``train.csv``, ``validation.csv``, ``test.csv`` and ``screens/*.png`` (square, ``phantom.size``
    pixels a side). A split has whole tasks, as many as it takes to reach the rows that are asked for, so it may have up
    to seven more. Written again, the files are the same to the byte. No task stands in two splits. Each CSV is written
    last, under a temporary name first.
    """
    counts = {"train": phantom.train, "validation": phantom.validation, "test": phantom.test}
    (folder / "screens").mkdir(parents=True, exist_ok=True)
    files, first = {}, 0
    for split, rows in counts.items():
        tasks = list(_tasks(seed, first, rows))
        if tasks:
            files[split] = _write_split(folder, f"{split}.csv", tasks, (phantom.size, seed))
        first += len(tasks)
    return files


def _tasks(seed: int, first: int, rows: int) -> Iterator[tuple[int, Task]]:
    """Numbers and tasks from ``first`` on, until their steps are at least ``rows``."""
    index = first
    while rows > 0:
        task = make_task(seed, index)
        yield index, task
        rows -= len(task.steps)
        index += 1


def _write_split(folder: Path, name: str, tasks: list[tuple[int, Task]], shape: tuple[int, int]) -> Path:
    size, seed = shape

    def draw(numbered: tuple[int, Task]) -> list[dict[str, str]]:
        index, task = numbered
        for step in task.steps:
            # A generator of its own for each screen, which knows nothing of what was done.
            rng = np.random.default_rng([seed, index, step.number])
            _write_screen(folder / screen_name(task, step), draw_screen(task.layout, size, rng))
        return rows_of(task, size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = [row for made in pool.map(draw, tasks) for row in made]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path, temporary = folder / name, folder / f".{name}.partial"
    temporary.write_bytes(text.getvalue().encode())
    temporary.replace(path)
    return path


def _write_screen(path: Path, screen: Any) -> None:
    temporary = path.with_suffix(".partial")
    Image.fromarray(screen).save(temporary, "PNG", compress_level=1)
    temporary.replace(path)


def rows_of(task: Task, size: int) -> list[dict[str, str]]:
    """A task's rows in the order of its steps; boxes and coordinates are pixels of screens of this side."""
    return [
        {
            "Task_id": task.id,
            "Image_id": screen_name(task, step),
            "Instruction": task.goal,
            "Output": _compact(answer(task, step, size)),
            "Grounding": _compact({"ground_truth": _ground_truth(task, step, size)}),
            "Application": task.application,
        }
        for step in task.steps
    ]


def screen_name(task: Task, step: Step) -> str:
    """The screen's file, relative to the folder of the rows."""
    return f"screens/{task.id}_{step.number}.png"


def _ground_truth(task: Task, step: Step, size: int) -> dict[str, Any]:
    original = {
        "step": step.number,
        "action": step.action,
        "target": step.target,
        "screenshot": screen_name(task, step),
        "note": WIDGETS[step.subtask].look if step.subtask else "nothing is left to do",
        "bbox": place(task, step, size),
    }
    return {"action": step.action, "target": step.target, "original_step_data": original}


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


STEP_ROWS = Synthetic(
    kind="steps",
    description="tasks in an image viewer, step by step",
    write=write_steps,
    columns=frozenset(COLUMNS),
    min_size=LEAST_SIDE,
    content="screens",
)
